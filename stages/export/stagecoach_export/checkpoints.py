"""Finds the checkpoint to export, in a finished training or in one that still runs, and opens it for reading
by rectangle.

A finished training's manifest holds its last and its best checkpoint as ``iter_0000152/<file>``; the others
that it keeps have manifests of their own in the store. For a training that still runs, the plan names one
checkpoint, whose files lie at the top.
Iteration 0 is the native model itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stagecoach.architectures.registry import native_tensors
from stagecoach.errors import DataError, MissingInputError
from stagecoach.formats.checkpoint import INDEX_NAME, CheckpointIndex, CheckpointReader, Kind, StoredPiece
from stagecoach.formats.native import NativeModel
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.manifest import read_manifest
from stagecoach.outputs import Input, open_input
from stagecoach.parallel.rectangles import Span
from stagecoach.partial_input import fetch_tensors
from stagecoach.paths import checkpoint_prefix

_PLACE = re.compile(r"iter_(\d+)/attempt-(\d+)/")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The checkpoint that is exported."""

    iteration: int
    """Steps done in it."""
    attempt: int | None
    """Attempt that wrote it; None for the untrained model."""
    reader: CheckpointReader
    """Reads its tensors."""
    state: Mapping[str, Any]
    """What the training recorded beside the tensors; empty for the untrained model."""


Reads = Callable[[CheckpointReader], Iterable[tuple[str, Span]]]
"""What will be read of a checkpoint: file and bytes."""


def choose(
    wanted: int | Literal["last", "best"],
    trained: Input,
    native: Input,
    model: NativeModel,
    scratch: Path,
    reads: Reads,
) -> Chosen:
    """Open the checkpoint that ``wanted`` names.

    Args:
        wanted: ``last``, ``best`` (lowest held-out loss) or a number; 0 is the untrained model.
        trained: A finished training, or one checkpoint of a training that still runs.
        native: The native model that the training began with.
        model: Its ``model.json``.
        scratch: Local folder for objects that must be copied to be read.
        reads: Says what will be read of the checkpoint: no more of it is copied, and nothing else may be read.

    Raises:
        MissingInputError: The training has no such checkpoint; those that it has are listed.
        DataError: The checkpoint belongs to a model of other dimensions.
    """
    if INDEX_NAME in trained.names():
        return _open(trained, "", model, scratch, reads)
    iteration = trained.summary.get(wanted) if isinstance(wanted, str) else wanted
    if isinstance(iteration, int):
        folder = f"iter_{iteration:07d}/"
        if folder + INDEX_NAME in trained.names():
            return _open(trained, folder, model, scratch, reads)
        if iteration == 0:
            return Chosen(0, None, _native_reader(native, model), {})
        attempts = _committed_attempts(trained, folder)
        if attempts:
            checkpoint = checkpoint_prefix(trained.prefix, iteration, max(attempts))
            return _open(open_input(trained.store, checkpoint, scratch), "", model, scratch, reads)
    kept = ", ".join(map(str, trained.summary.get("iterations", []))) or "none"
    what = f"iteration {wanted}" if isinstance(wanted, int) else f"a {wanted} iteration"
    why = " (no held-out loss was recorded)" if wanted == "best" and iteration is None else ""
    raise MissingInputError(
        f"{trained.prefix}: expected {what}{why}, it keeps {kept}; choose one of these as export.iteration"
    )


def _committed_attempts(trained: Input, folder: str) -> list[int]:
    prefix = trained.prefix + folder
    names = [re.fullmatch(r"attempt-(\d+)", name) for name in trained.store.list_folders(prefix)]
    return [int(name[1]) for name in names if name and read_manifest(trained.store, f"{prefix}{name[0]}/") is not None]


def _open(trained: Input, folder: str, model: NativeModel, scratch: Path, reads: Reads) -> Chosen:
    where = _PLACE.search(trained.entry(folder + INDEX_NAME).path)
    origin = f"{trained.prefix}{folder}{INDEX_NAME}"
    if where is None:
        raise DataError(f"{origin}: expected a checkpoint under iter_<number>/attempt-<number>/")
    index = CheckpointIndex.from_bytes(trained.read_bytes(folder + INDEX_NAME), origin)
    if index.spec != model.spec:
        differing = [
            f"{name} {value!r} instead of {index.spec.to_json()[name]!r}"
            for name, value in model.spec.to_json().items()
            if index.spec.to_json()[name] != value
        ]
        raise DataError(f"{origin}: expected a checkpoint of the native model, got {'; '.join(differing)}")

    def reader_of(path_of: Callable[[str], Path]) -> CheckpointReader:
        return CheckpointReader(index, lambda file: TensorFile.open(path_of(folder + file)))

    paths = fetch_tensors(
        trained, scratch, lambda path_of: ((folder + file, span) for file, span in reads(reader_of(path_of)))
    )
    reader = reader_of(paths.__getitem__)
    return Chosen(int(where[1]), int(where[2]), reader, index.state)


def _native_reader(native: Input, model: NativeModel) -> CheckpointReader:
    entries: list[tuple[str, Kind, StoredPiece]] = []
    for tensor in native_tensors(model.spec):
        cols = (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
        piece = StoredPiece.whole(model.files[tensor.name], tensor.name, (0, tensor.shape[0]), cols)
        entries.append((tensor.name, "weight", piece))
    index = CheckpointIndex.build(model.spec, entries)
    return CheckpointReader(index, lambda file: TensorFile.open(native.path(file)))
