"""Readers and writers of every file format that passes between stages."""
