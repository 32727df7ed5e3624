"""Writes checkpoints in the background: the training waits only while its state is copied to the host's memory.

    main thread    .. step | snapshot | step | step | step ..       (waits here if the last one is still being written)
    writer thread            hash, upload own file -> tell rank 0
    .. of rank 0             all files there -> index.json -> fence -> manifest.json -> tell all -> retention, tracker

Threads talk through the ranks' store of texts alone, never by collectives, which belong to the main thread.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from stagecoach import faults
from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import InterruptedWithProgress, StoreUnavailable, UnavailableError
from stagecoach.formats.checkpoint import (
    INDEX_NAME,
    CheckpointIndex,
    Kind,
    StoredPiece,
    piece_tensor_name,
    rank_file_name,
)
from stagecoach.formats.tensor_file import TensorToWrite, write_tensor_file
from stagecoach.manifest import Digests, Manifest, ObjectEntry, commit_manifest
from stagecoach.paths import checkpoint_prefix, tracker_key
from stagecoach.storage.base import ObjectStore
from stagecoach_train.attempts import Fence
from stagecoach_train.checkpointing import Retention, committed_checkpoints, delete_checkpoint
from stagecoach_train.patience import patiently
from stagecoach_train.ranks import Ranks
from stagecoach_train.results import StatePiece
from stagecoach_train.train_state import CheckpointRef, TrainState

COMMIT_TIMEOUT_SECONDS = 4 * 3600.0

_log = logging.getLogger("stagecoach.train")

Entry = tuple[str, Kind, StoredPiece]


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What one checkpoint cost.

    Attributes:
        iteration: Steps done in it.
        size_bytes: Bytes of this rank's file.
        stall_seconds: How long the training stood still for it.
        total_seconds: From the start of the snapshot to the commit.
    """

    iteration: int
    size_bytes: int
    stall_seconds: float
    total_seconds: float


class CheckpointWriter:
    """Writes this rank's part of every checkpoint, and on rank 0 commits them."""

    def __init__(
        self,
        store: ObjectStore,
        trained: str,
        ranks: Ranks,
        fence: Fence,
        spec: ModelSpec,
        retention: Retention,
        resumed_from: CheckpointRef | None,
        scratch: Path,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            store: Where the training lies.
            trained: Folder of the training's output, with its final slash.
            ranks: The peers.
            fence: Guards commits and deletions.
            spec: Dimensions of the model.
            retention: Which checkpoints stay.
            resumed_from: The checkpoint that this attempt began with; it is never deleted.
            scratch: Where this rank's file lies on its way to the store.
            before_commit: Stores what must not be lost once the training can go on from a checkpoint: its metrics.
        """
        self._store = store
        self._trained = trained
        self._ranks = ranks
        self._fence = fence
        self._spec = spec
        self._retention = retention
        self._resumed_from = resumed_from
        self._scratch = scratch
        self._before_commit = before_commit
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._reports: deque[SaveReport] = deque()
        self._fenced: str | None = None
        scratch.mkdir(parents=True, exist_ok=True)

    def save(self, pieces: Iterable[StatePiece], state: TrainState) -> None:
        """Copy this rank's state and start writing it; every rank calls this at the same step.

        Raises:
            StagecoachError: The checkpoint before this one failed.
        """
        started_seconds = time.monotonic()
        self.wait()
        snapshot = list(pieces)
        frozen = state.to_json()
        stall_seconds = time.monotonic() - started_seconds
        self._thread = threading.Thread(
            target=self._run, args=(state.step, snapshot, frozen, started_seconds, stall_seconds), name="checkpoint"
        )
        self._thread.daemon = True
        self._thread.start()

    @property
    def fenced(self) -> str | None:
        """Why this attempt may no longer write, once it may not; the ranks have to agree on it before they stop."""
        return self._fenced

    @property
    def busy(self) -> bool:
        """A checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> SaveReport | None:
        """Return the report of a checkpoint that was committed, each once and the oldest first, or None.

        Raises:
            BaseException: What ended the writing in the background; every report was returned before.
        """
        if self._reports:
            return self._reports.popleft()
        self._raise_error()
        return None

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is committed.

        Raises:
            BaseException: What ended the writing in the background.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, pieces: list[StatePiece], state: dict[str, Any], started: float, stall: float) -> None:
        try:
            size_bytes = self._write_own_file(step, pieces)
            pieces.clear()
            if self._ranks.leads:
                self._commit(step, state)
                self._ranks.say(self._key(step, "committed"), "")
            else:
                (refusal,) = self._ranks.hear([self._key(step, "committed")], timeout_seconds=COMMIT_TIMEOUT_SECONDS)
                if refusal:
                    self._fenced = refusal
                    return
            self._reports.append(SaveReport(step, size_bytes, stall, time.monotonic() - started))
            if self._ranks.leads:
                self._tidy_up(step, state)
        except InterruptedWithProgress as error:
            self._fenced = str(error)
            self._ranks.say(self._key(step, "committed"), str(error))
        except BaseException as error:
            self._error = error

    def _key(self, step: int, what: str | int) -> str:
        return f"checkpoint/{step}/{what}"

    def _prefix(self, step: int) -> str:
        return checkpoint_prefix(self._trained, step, self._fence.attempt)

    def _write_own_file(self, step: int, pieces: list[StatePiece]) -> int:
        """Write, hash and upload this rank's tensors and tell rank 0 what and where they are; returns their bytes."""
        name = rank_file_name(self._ranks.rank)
        path = self._scratch / f"{step:07d}-{name}"
        entries: list[Entry] = []
        tensors: list[TensorToWrite] = []
        for piece in pieces:
            kind = cast(Kind, piece.kind)
            tensor = piece_tensor_name(piece.name, kind, piece.rows, piece.cols)
            entries.append((piece.name, kind, StoredPiece.whole(name, tensor, piece.rows, piece.cols)))
            tensors.append(TensorToWrite(tensor, piece.tensor.dtype, piece.tensor.shape, _producing(piece)))
        digests = Digests()
        try:
            with open(path, "wb", buffering=0) as file:
                write_tensor_file(cast(BinaryIO, _Hashing(file, digests)), tensors)
            key = self._prefix(step) + name
            patiently(lambda: self._store.put_file(key, path), f"checkpoint {step}")
        finally:
            path.unlink(missing_ok=True)
        record = {
            "entry": digests.entry(key).model_dump(mode="json"),
            "pieces": [(tensor_name, kind, piece.to_json()) for tensor_name, kind, piece in entries],
        }
        self._ranks.say(self._key(step, self._ranks.rank), json.dumps(record))
        return digests.size_bytes

    def _commit(self, step: int, state: dict[str, Any]) -> None:
        """Wait for every rank's file, then make the checkpoint exist."""
        faults.hit(faults.BETWEEN_CHECKPOINT_OBJECTS)
        keys = [self._key(step, rank) for rank in range(self._ranks.size)]
        records = [json.loads(text) for text in self._ranks.hear(keys, timeout_seconds=COMMIT_TIMEOUT_SECONDS)]
        entries: list[Entry] = [
            (name, kind, StoredPiece.from_json(piece)) for record in records for name, kind, piece in record["pieces"]
        ]
        prefix = self._prefix(step)
        index = CheckpointIndex.build(self._spec, entries, state).to_bytes()
        digests = Digests()
        digests.update(index)
        objects = {rank_file_name(rank): ObjectEntry(**record["entry"]) for rank, record in enumerate(records)}
        objects[INDEX_NAME] = digests.entry(prefix + INDEX_NAME)
        folder = self._trained.rstrip("/").rsplit("/", 1)[-1]
        manifest = Manifest(
            task="checkpoint",
            key=folder.rsplit("-", 1)[-1],
            name=f"{folder}/iter_{step:07d}",
            output_version=1,
            objects=objects,
            summary=state,
        )
        patiently(self._fence.check, "the fence")
        patiently(
            lambda: self._store.put_if_absent(prefix + INDEX_NAME, index, content_type="application/json"), prefix
        )
        patiently(self._before_commit, "metrics")
        patiently(self._fence.check, "the fence")
        patiently(lambda: commit_manifest(self._store, prefix, manifest), prefix)

    def _tidy_up(self, step: int, state: dict[str, Any]) -> None:
        """Do what follows a commit: retention, and the tracker. Neither is worth waiting for a store that is away: the
        next checkpoint does it too.
        """
        store, trained, done = self._store, self._trained, TrainState.from_json(state)
        try:
            refs = committed_checkpoints(store, trained)
            for ref in self._retention.to_delete(refs, done, self._resumed_from, self._fence.attempt):
                delete_checkpoint(store, trained, ref, self._fence)
            # last: a disk that is full takes deletions
            store.put(tracker_key(trained), f"{step}\n".encode(), content_type="text/plain")
        except StoreUnavailable as error:
            _log.warning("the checkpoint of step %d is committed; what follows is left to the next: %s", step, error)


def _producing(piece: StatePiece) -> Callable[[], Any]:
    return lambda: piece.tensor


class _Hashing(RawIOBase):
    """Passes bytes on to a file, all of them, and hashes them on the way."""

    def __init__(self, file: RawIOBase, digests: Digests) -> None:
        super().__init__()
        self._file = file
        self._digests = digests

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            written = self._file.write(view[at:])
            if written is None:
                raise UnavailableError("the scratch file took no bytes; is it a pipe?")
            at += written
        self._digests.update(view)
        return len(view)
