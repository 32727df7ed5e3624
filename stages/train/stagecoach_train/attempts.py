"""Who may write to a half-done training: numbered attempts, of which the highest alone commits, and their heartbeats.

    attempts/0001.json     taken by conditional put: {run_id, host, newest_iteration, ..}; never changes
    heartbeat-0001.json    changes every few seconds while that attempt lives; its last content says how it ended

A retry of the same run takes the next number at once: fencing makes that safe, because the older attempt looks for a
higher number before every commit and delete. Another run waits as long as the heartbeat's content changes. Waiting is
timed on the waiter's own monotonic clock, so clocks of different machines are never compared; an attempt whose
process ran on this very machine and is gone is not waited for.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stagecoach.errors import CorruptObjectError, InterruptedWithProgress, NoProgressError, ObjectMissing, StoreError
from stagecoach.paths import attempts_prefix, heartbeat_key, manifest_key, numbered
from stagecoach.records import last_number, read_sealed, record_keys
from stagecoach.sealed import seal
from stagecoach.storage.base import ObjectStore
from stagecoach_train.liveness import is_gone, own_name
from stagecoach_train.train_state import CheckpointRef

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3

Ending = Literal["done", "interrupted", "failed"]

_log = logging.getLogger("stagecoach.train")


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """What ``attempts/NNNN.json`` holds.

    Attributes:
        run_id: The run on whose behalf it was taken; a stage started by hand makes one up.
        newest_iteration: Iteration of the newest committed checkpoint when it was taken, 0 if there was none.
        host: Machine of rank 0.
        nonce: Random, so that two records are never equal.
        started_unix_seconds: When it was taken.
        process: The process that took it (see ``liveness``), empty where that cannot be said.
    """

    run_id: str
    newest_iteration: int
    host: str
    nonce: str
    started_unix_seconds: float
    process: str = ""


def read_attempts(store: ObjectStore, trained: str) -> dict[int, AttemptRecord]:
    """Return every attempt by its number, ascending; a damaged record counts as that of an unknown run."""
    return {number: _attempt(store, key) for number, key in record_keys(store, attempts_prefix(trained)).items()}


def _attempt(store: ObjectStore, key: str) -> AttemptRecord:
    try:
        return AttemptRecord(**read_sealed(store, key))
    except (CorruptObjectError, TypeError) as error:
        _log.warning("%s is damaged; its attempt is waited for as another run's: %s", key, error)
        return AttemptRecord("", -1, "", "", 0.0)


def take_attempt(
    store: ObjectStore,
    trained: str,
    run_id: str,
    checkpoints: Callable[[], Sequence[CheckpointRef]],
    check_stop: Callable[[], None],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = 1.0,
) -> int | None:
    """Take the next attempt number, after waiting for another run that is still alive.

    Args:
        store: Where the training lies.
        trained: Folder of the training's output, with its final slash.
        run_id: The run that asks.
        checkpoints: Returns every committed checkpoint.
        check_stop: Called while waiting; raises to stop.
        patience_seconds: How long a heartbeat may stay the same before its attempt counts as dead.
        poll_seconds: Time between two looks.

    Returns:
        The number, or None if the other run finished the training meanwhile.

    Raises:
        NoProgressError: Three attempts of this run ended without any checkpoint beyond the one they started from.
    """
    while True:
        attempts = read_attempts(store, trained)
        number = max(attempts, default=0)
        if number and attempts[number].run_id != run_id:
            process = attempts[number].process
            if _wait_for_end(store, trained, number, process, check_stop, patience_seconds, poll_seconds):
                return None
            if last_number(store, attempts_prefix(trained)) != number:
                continue
        saved = checkpoints()
        iteration = max((ref.iteration for ref in saved), default=0)
        _refuse_without_progress(store, trained, attempts, run_id, iteration, {ref.attempt for ref in saved})
        record = AttemptRecord(
            run_id, iteration, socket.gethostname(), secrets.token_hex(8), round(time.time(), 3), own_name()
        )
        data = seal(asdict(record))
        if store.put_if_absent(numbered(attempts_prefix(trained), number + 1), data, content_type="application/json"):
            return number + 1


def _wait_for_end(
    store: ObjectStore,
    trained: str,
    number: int,
    process: str,
    check_stop: Callable[[], None],
    patience_seconds: float,
    poll_seconds: float,
) -> bool:
    """Wait until the attempt has ended or its heartbeat stands still; True if the training is finished."""
    seen = _heartbeat(store, trained, number)
    changed_seconds = time.monotonic()
    announced = False
    while True:
        if store.head(manifest_key(trained)) is not None:
            return True
        if seen is not None and seen.get("state") != "running":
            return False
        if is_gone(process):
            _log.info("attempt %d ran here and its process is gone; taking over", number)
            return False
        if time.monotonic() - changed_seconds >= patience_seconds:
            _log.warning("attempt %d has shown no sign of life for %.0f s; taking over", number, patience_seconds)
            return False
        if not announced:
            _log.info("another run is at this very training (attempt %d); waiting for it", number)
            announced = True
        check_stop()
        time.sleep(poll_seconds)
        now = _heartbeat(store, trained, number)
        if now != seen:
            seen, changed_seconds = now, time.monotonic()


def _refuse_without_progress(
    store: ObjectStore,
    trained: str,
    attempts: dict[int, AttemptRecord],
    run_id: str,
    iteration: int,
    with_checkpoint: set[int],
) -> None:
    """Refuse a fourth attempt of a run whose last three got nowhere; those that were stopped from outside do not
    count.

    The newest iteration alone does not show progress: it stands still until a training has come up to a damaged
    checkpoint.
    """
    fruitless = 0
    for number, record in sorted(attempts.items(), reverse=True):
        if record.run_id != run_id or record.newest_iteration != iteration or number in with_checkpoint:
            break
        beat = _heartbeat(store, trained, number)
        fruitless += beat is None or beat.get("state") != "interrupted"
    if fruitless >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        raise NoProgressError(
            f"train: {fruitless} attempts of run {run_id} ended without a checkpoint beyond iteration {iteration};"
            " read why in the logs of its attempts, then start a new run, or save more often (train.save_every_steps)"
        )


def _heartbeat(store: ObjectStore, trained: str, number: int) -> dict[str, Any] | None:
    try:
        beat = json.loads(store.get(heartbeat_key(trained, number)))
    except (ObjectMissing, ValueError, RecursionError):
        return None
    return beat if isinstance(beat, dict) else None


class Fence:
    """Stops an attempt once a higher one exists."""

    def __init__(self, store: ObjectStore, trained: str, attempt: int) -> None:
        """Guard the attempt with that number."""
        self._store = store
        self._trained = trained
        self.attempt = attempt

    def check(self) -> None:
        """Return if this is still the highest attempt.

        Raises:
            InterruptedWithProgress: It is not; whatever this attempt still holds belongs to the past.
        """
        highest = last_number(self._store, attempts_prefix(self._trained))
        if highest > self.attempt:
            raise InterruptedWithProgress(
                f"train: attempt {highest} has taken over from attempt {self.attempt}, which stops here"
            )


class Heartbeat:
    """Changes ``heartbeat-NNNN.json`` every few seconds, until it is told how the attempt ended."""

    def __init__(
        self,
        store: ObjectStore,
        trained: str,
        attempt: int,
        on_fenced: Callable[[str], None],
        *,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        """Prepare; ``on_fenced`` is called once, from another thread, if a higher attempt appears."""
        self._store = store
        self._key = heartbeat_key(trained, attempt)
        self._fence = Fence(store, trained, attempt)
        self._on_fenced = on_fenced
        self._beat_seconds = beat_seconds
        self._over = threading.Event()
        self._ending: Ending | None = None
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once now, then regularly."""
        self._beat()
        self._thread.start()

    def end(self, state: Ending, *, wait_seconds: float = BEAT_SECONDS) -> None:
        """Stop beating and say how the attempt ended, so that nobody waits for it; the first word stays; never fails.

        The thread that beats says it, behind its last beat, which could else arrive later and say "running" for ever;
        where that takes longer than ``wait_seconds``, it is said here as well.
        """
        self._ending = self._ending or state
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=wait_seconds)
            if not self._thread.is_alive():
                return
        self._beat()

    def _run(self) -> None:
        fenced = False
        while not self._over.wait(self._beat_seconds):
            self._beat()
            try:
                self._fence.check()
            except InterruptedWithProgress as error:
                if not fenced:
                    self._on_fenced(str(error))
                fenced = True
            except StoreError as error:
                _log.warning("could not look for a higher attempt: %s", error)
        self._beat()

    def _beat(self) -> None:
        self._beats += 1
        content = {"attempt": self._fence.attempt, "beat": self._beats, "state": self._ending or "running"}
        try:
            self._store.put(self._key, json.dumps(content).encode(), content_type="application/json")
        except StoreError as error:
            _log.warning("heartbeat not written: %s", error)
