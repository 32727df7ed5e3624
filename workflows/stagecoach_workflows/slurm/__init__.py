"""Runs the pipeline on a SLURM cluster: one batch job for each task of the built workflow, joined by dependencies."""
