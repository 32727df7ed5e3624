"""What a machine reads before its ranks start: what its own ranks need, copied if need be, and every byte checked once.

One machine of several fetches the parts of shards and checkpoint that its ranks hold (``stagecoach.partial_input``); a
resumed training fetches no shards at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from stagecoach.errors import MissingInputError
from stagecoach.formats.checkpoint import INDEX_NAME, CheckpointIndex, CheckpointReader
from stagecoach.formats.shards import SHARDS_JSON, Shards
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.outputs import Input, open_input
from stagecoach.parallel.rectangles import Span
from stagecoach.partial_input import fetch_tensors
from stagecoach.paths import checkpoint_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach_train.checkpointing import check_all, load_checkpoint
from stagecoach_train.job import CHECKPOINT, Files, Job
from stagecoach_train.launcher import World
from stagecoach_train.parallel.shares import topology_of, wants_of_rank

_READ = ("shards", "packed", "tokenizer")
_PathOf = Callable[[str], Path]


def ranks_here(settings: Settings, config: TrainConfig) -> range | None:
    """Return the ranks of this machine; None if it has all of them, or if a foreign launcher does not say."""
    if settings.world_size is None:
        world = World.of(settings, config.layout.world_size, config.nodes)
        first, size, total = world.first_rank, world.local_size, world.size
    elif settings.local_world_size is None:
        return None
    else:
        first = (settings.rank or 0) - (settings.local_rank or 0)
        size, total = settings.local_world_size, settings.world_size
    return None if size >= total else range(first, first + size)


def check_files(job: Job, store: ObjectStore, ranks: range | None) -> Files:
    """Copy and check everything that these ranks read, the resumed checkpoint included; None stands for all ranks."""
    files = check_inputs(job, store, ranks)
    resume = None if job.assignment is None else job.assignment.resume
    if resume is None:
        return files
    scratch = job.scratch / CHECKPOINT
    if ranks is None:
        found: dict[str, Path] = dict(load_checkpoint(store, job.trained, resume, scratch).paths)
    else:
        source = open_input(store, checkpoint_prefix(job.trained, resume.iteration, resume.attempt), scratch)
        index = CheckpointIndex.from_bytes(source.read_bytes(INDEX_NAME), source.prefix + INDEX_NAME)

        def reads(path_of: _PathOf) -> Iterator[tuple[str, Span]]:
            reader = CheckpointReader(index, lambda name: TensorFile.open(path_of(name)))
            for rank in ranks:
                for want in wants_of_rank(job.config, index.spec, rank):
                    yield from reader.byte_spans(want.name, want.kind, want.rows, want.cols)

        found = {INDEX_NAME: source.path(INDEX_NAME), **fetch_tensors(source, scratch / "parts", reads)}
    files[CHECKPOINT] = {name: str(path) for name, path in found.items()}
    return files


def check_inputs(job: Job, store: ObjectStore, ranks: range | None) -> Files:
    """Copy and check the inputs, the shards as far as these ranks read them; the tokenizer only if somebody is asked.

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
            source = open_input(store, job.inputs[name], job.scratch / "inputs")
            checked = _shards(job, source, ranks) if name == "shards" else check_all(source)
            files[name] = {object_name: str(path) for object_name, path in checked.items()}
    return files


def _shards(job: Job, source: Input, ranks: range | None) -> dict[str, Path]:
    """Copy and check the start weights; of a resumed training only what they say about the model."""
    if job.assignment is not None and job.assignment.resume is not None:
        return check_all(source, [SHARDS_JSON])
    if ranks is None:
        return check_all(source)
    shards = Shards.from_bytes(source.read_bytes(SHARDS_JSON), source.prefix + SHARDS_JSON)

    def reads(path_of: _PathOf) -> Iterator[tuple[str, Span]]:
        for rank in ranks:
            at = topology_of(job.config).coordinates(rank)
            reader = shards.reader_of_rank(path_of, at.tp, at.pp)
            for want in wants_of_rank(job.config, shards.spec, rank):
                if want.kind == "weight":
                    yield from reader.byte_spans(want.name, want.kind, want.rows, want.cols)

    return {SHARDS_JSON: source.path(SHARDS_JSON), **fetch_tensors(source, job.scratch / "inputs" / "parts", reads)}
