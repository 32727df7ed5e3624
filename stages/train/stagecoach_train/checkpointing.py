"""Checkpoints: found and checked at the start, written while training goes on, committed last, kept by policy.

    iter_0000152/attempt-0001/rank-00000.safetensors    each rank writes its own
                              index.json                rank 0: which rectangle lies where, and the training's state
                              manifest.json             rank 0, last, by conditional put: now the checkpoint exists
    latest_checkpointed_iteration.txt                   a convenience; nobody here reads it

Before the commit, and before each deletion, rank 0 looks for a higher attempt and stops with 75 if there is one.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stagecoach.errors import CorruptObjectError, DataError, InterruptedWithProgress, MissingInputError
from stagecoach.formats.checkpoint import INDEX_NAME, CheckpointIndex
from stagecoach.manifest import Manifest
from stagecoach.outputs import Input, open_input
from stagecoach.paths import MANIFEST, checkpoint_prefix, manifest_key
from stagecoach.storage.base import ObjectStore
from stagecoach_train.attempts import Fence
from stagecoach_train.train_state import CheckpointRef, TrainState

_log = logging.getLogger("stagecoach.train")

_FOLDER = re.compile(r"iter_(\d{7})/attempt-(\d{4})/$")


def committed_checkpoints(store: ObjectStore, trained: str) -> list[CheckpointRef]:
    """Return every committed checkpoint of a training, ascending."""
    found = []
    for folder in _folders(store, trained):
        match = _FOLDER.search(folder)
        if match and store.head(folder + MANIFEST) is not None:
            found.append(CheckpointRef(int(match[1]), int(match[2])))
    return sorted(found)


def _folders(store: ObjectStore, trained: str) -> Iterable[str]:
    for iteration in store.list_folders(trained):
        if iteration.startswith("iter_"):
            folder = f"{trained}{iteration}/"
            yield from (f"{folder}{attempt}/" for attempt in store.list_folders(folder))


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A committed checkpoint whose bytes were checked.

    Attributes:
        ref: Which one.
        manifest: Its manifest.
        state: The training's state in it.
        paths: Object name -> local file.
    """

    ref: CheckpointRef
    manifest: Manifest
    state: TrainState
    paths: Mapping[str, Path]


def find_newest_intact(store: ObjectStore, trained: str, scratch: Path) -> StoredCheckpoint | None:
    """Return the newest checkpoint all of whose bytes are as recorded, or None; damaged ones are named in the log.

    Args:
        store: Where the training lies.
        trained: Folder of the training's output, with its final slash.
        scratch: Where objects go that must be copied to be read.
    """
    refs = committed_checkpoints(store, trained)
    for ref in reversed(refs):
        try:
            return load_checkpoint(store, trained, ref, scratch / f"{ref.iteration:07d}-{ref.attempt:04d}")
        except (DataError, MissingInputError) as error:
            _log.warning(
                "checkpoint of iteration %d (attempt %d) is damaged and passed over for the one before: %s",
                ref.iteration,
                ref.attempt,
                error,
            )
            shutil.rmtree(scratch / f"{ref.iteration:07d}-{ref.attempt:04d}", ignore_errors=True)
    return None


def load_checkpoint(store: ObjectStore, trained: str, ref: CheckpointRef, scratch: Path) -> StoredCheckpoint:
    """Check every byte of one checkpoint.

    Raises:
        CorruptObjectError: An object differs from its record.
        MissingInputError: An object, or the manifest, is gone.
    """
    source = open_input(store, checkpoint_prefix(trained, ref.iteration, ref.attempt), scratch)
    paths = check_all(source)
    if INDEX_NAME not in paths:
        raise CorruptObjectError(f"{source.prefix}: expected an object {INDEX_NAME}, its manifest lists none")
    index = CheckpointIndex.from_bytes(paths[INDEX_NAME].read_bytes(), source.prefix + INDEX_NAME)
    missing = sorted(set(index.files) - set(paths))
    if missing:
        raise CorruptObjectError(f"{source.prefix}: its index names {missing[0]}, its manifest does not")
    try:
        state = TrainState.from_json(dict(index.state))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{source.prefix}{INDEX_NAME}: expected the state of a training: {error!r}") from error
    return StoredCheckpoint(ref, source.manifest, state, paths)


def check_all(source: Input, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Check objects of an input, several at once, and return their local files.

    Args:
        source: The input.
        names: Which objects; None takes all.
    """
    wanted = source.names() if names is None else list(names)
    with ThreadPoolExecutor(max_workers=min(8, max(1, len(wanted)))) as pool:
        return dict(zip(wanted, pool.map(source.path, wanted), strict=True))


@dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep_last: This many of the newest; more steps than the training has done are in damaged ones alone, which it
            passed over, and which stay until it has come so far again.
        keep_every_steps: Every one whose iteration is a multiple of this.
        keep_best: The one with the lowest held-out loss.
    """

    keep_last: int
    keep_every_steps: int | None
    keep_best: bool

    def to_delete(
        self, refs: Iterable[CheckpointRef], state: TrainState, protected: CheckpointRef | None, attempt: int
    ) -> list[CheckpointRef]:
        """Return what may go, oldest first; damaged ones are kept for nothing once the training has come so far again.

        Args:
            refs: Every committed checkpoint, that of this state among them.
            state: The state just committed, which knows the held-out losses.
            protected: The checkpoint that this attempt resumed from, which stays in any case.
            attempt: Number of this attempt.
        """
        ordered = sorted(refs)
        # what older attempts left beyond the one resumed from is damaged: it was passed over
        intact = {r.iteration for r in ordered if r.attempt >= attempt or (protected is not None and r <= protected)}
        done = sorted(iteration for iteration in intact if iteration <= state.step)
        kept = set(done[-self.keep_last :]) | {ref.iteration for ref in ordered if ref.iteration > state.step}
        if self.keep_every_steps is not None:
            kept |= {iteration for iteration in done if iteration % self.keep_every_steps == 0}
        best = state.best_step(set(done)) if self.keep_best else None
        kept |= {best} if best is not None else set()
        # all attempts at a kept iteration: an older attempt may be handing over the one that it committed last
        return [ref for ref in ordered if ref.iteration not in kept and ref != protected]


def delete_checkpoint(store: ObjectStore, trained: str, ref: CheckpointRef, fence: Fence) -> None:
    """Delete one checkpoint: its manifest first, so that nobody finds half of it.

    Raises:
        InterruptedWithProgress: A higher attempt exists, whose business this is now, or another attempt has finished
            the training, whose output may name this checkpoint.
    """
    fence.check()
    if store.head(manifest_key(trained)) is not None:
        raise InterruptedWithProgress("train: another attempt has finished this training; this one stops here")
    prefix = checkpoint_prefix(trained, ref.iteration, ref.attempt)
    store.delete([prefix + MANIFEST])
    store.delete([info.key for info in store.list(prefix)])
    _log.info("checkpoint of iteration %d (attempt %d) deleted, by the retention policy", ref.iteration, ref.attempt)
