"""Parallelism laid on from outside: process groups, collectives, tensor, data and pipeline parallelism."""
