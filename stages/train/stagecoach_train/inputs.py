"""What a machine reads before its ranks start: every input copied if need be, and every byte checked once."""

from __future__ import annotations

from stagecoach.errors import MissingInputError
from stagecoach.outputs import open_input
from stagecoach.storage.base import ObjectStore
from stagecoach_train.checkpointing import check_all, load_checkpoint
from stagecoach_train.job import CHECKPOINT, Files, Job

_READ = ("shards", "packed", "tokenizer")


def check_files(job: Job, store: ObjectStore) -> Files:
    """Copy and check everything that the ranks of this machine read, the resumed checkpoint included."""
    files = check_inputs(job, store)
    if job.assignment is not None and job.assignment.resume is not None:
        stored = load_checkpoint(store, job.trained, job.assignment.resume, job.scratch / CHECKPOINT)
        files[CHECKPOINT] = {name: str(path) for name, path in stored.paths.items()}
    return files


def check_inputs(job: Job, store: ObjectStore) -> Files:
    """Copy and check the inputs; the tokenizer only if somebody will be asked something.

    Raises:
        MissingInputError: An input was not given.
        CorruptObjectError: A byte differs from its record.
    """
    asks = bool(job.config.prompts or job.config.tasks)
    files: Files = {}
    for name in _READ:
        if name not in job.inputs:
            if name != "tokenizer" or asks:
                raise MissingInputError(
                    f"train: expected an input {name!r}, got {', '.join(sorted(job.inputs)) or 'none'}"
                )
        elif name != "tokenizer" or asks:
            checked = check_all(open_input(store, job.inputs[name], job.scratch / "inputs"))
            files[name] = {object_name: str(path) for object_name, path in checked.items()}
    return files
