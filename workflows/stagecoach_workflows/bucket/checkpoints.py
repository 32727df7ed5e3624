"""Which checkpoints a run's training has committed so far, read from the bucket alone while the training goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stagecoach.errors import MissingInputError
from stagecoach.manifest import read_manifest
from stagecoach.paths import checkpoint_prefix, manifest_key
from stagecoach.storage.base import ObjectStore

_ITERATION = re.compile(r"iter_(\d+)")
_ATTEMPT = re.compile(r"attempt-(\d+)")


@dataclass(frozen=True, order=True, slots=True)
class Checkpoint:
    """A committed checkpoint; of two of one iteration the higher attempt counts."""

    iteration: int
    attempt: int

    def prefix(self, trained: str) -> str:
        """Return its folder."""
        return checkpoint_prefix(trained, self.iteration, self.attempt)


def committed(store: ObjectStore, trained: str) -> list[Checkpoint]:
    """Return the checkpoint that counts of every iteration that is kept, ascending."""
    found: dict[int, Checkpoint] = {}
    for checkpoint in every_committed(store, trained):
        found[checkpoint.iteration] = max(checkpoint, found.get(checkpoint.iteration, checkpoint))
    return sorted(found.values())


def every_committed(store: ObjectStore, trained: str) -> Iterator[Checkpoint]:
    """Yield every checkpoint that has a manifest, those too that a later attempt made anew."""
    for checkpoint in every_begun(store, trained):
        if store.head(manifest_key(checkpoint.prefix(trained))) is not None:
            yield checkpoint


def every_begun(store: ObjectStore, trained: str) -> Iterator[Checkpoint]:
    """Yield every checkpoint that has objects, whether it has a manifest or not."""
    for folder in store.list_folders(trained):
        iteration = _ITERATION.fullmatch(folder)
        for name in store.list_folders(f"{trained}{folder}/") if iteration else ():
            attempt = _ATTEMPT.fullmatch(name)
            if iteration and attempt:
                yield Checkpoint(int(iteration[1]), int(attempt[1]))


def choose(store: ObjectStore, trained: str, wanted: int | Literal["last", "best"]) -> Checkpoint:
    """Return the checkpoint that ``wanted`` names now: the newest, that of the lowest held-out loss, or a number.

    Raises:
        MissingInputError: There is none; those that there are, are listed.
    """
    found = {checkpoint.iteration: checkpoint for checkpoint in committed(store, trained)}
    number = wanted
    if found and wanted == "last":
        number = max(found)
    elif found and wanted == "best":
        number = _best(store, trained, found)
    if number not in found:
        raise MissingInputError(
            f"{store.url.rstrip('/')}/{trained}: expected a checkpoint of iteration {wanted}, its training keeps"
            f" {', '.join(map(str, found)) or 'none yet'}; choose one of these, or wait"
        )
    return found[number]


def _best(store: ObjectStore, trained: str, found: dict[int, Checkpoint]) -> int:
    """Return the kept iteration with the lowest held-out loss, as the newest checkpoint's state has it; -1 without."""
    newest = read_manifest(store, found[max(found)].prefix(trained))
    heldout: dict[str, Any] = {} if newest is None else newest.summary.get("heldout", {})
    losses = {int(step): float(found_then["loss"]) for step, found_then in heldout.items() if int(step) in found}
    return min(losses, key=lambda step: (losses[step], step), default=-1)
