"""Keeps what a stage writes to standard error in the bucket while it runs, so that the log of a killed pod can be read.

    runs/<run id>/logs/<task>/0003-000001.txt    0003: number of the attempt's "started" record; then its chunks

A thread writes a chunk of whole lines every few seconds, without secrets. A kill loses what was said since the last one.
Keeping the log may never end a stage nor hold it up: a store that does not answer costs lines, and says so in the log.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from stagecoach.errors import StagecoachError
from stagecoach.paths import log_key
from stagecoach.redaction import without_secrets
from stagecoach.storage.base import ObjectStore

FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 30.0
_PAUSE_SHARE = 50  # a chunk each 2 % of the time so far: 30 hours make 3,600 chunks, not 54,000
_MAX_WAITING_CHARACTERS = 4 << 20
_LAST_PUT_SECONDS = 10.0


class RunLog:
    """What was written to standard error and is not in the bucket yet."""

    def __init__(self) -> None:
        """Collect lines from now on; they wait until it is clear where they go."""
        self._lock = threading.Lock()
        self._lines: deque[str] = deque()
        self._unfinished = ""
        self._num_characters = 0
        self._num_lost_lines = 0
        self._chunk = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, text: str) -> None:
        """Take text, whole lines or parts of one; beyond 4 MiB that wait, the oldest lines go and are counted."""
        with self._lock:
            *lines, self._unfinished = (self._unfinished + text).split("\n")
            self._lines.extend(lines)
            self._num_characters += sum(map(len, lines))
            while self._num_characters > _MAX_WAITING_CHARACTERS:
                self._num_characters -= len(self._lines.popleft())
                self._num_lost_lines += 1

    def keep_in(self, store: ObjectStore, run_id: str, task: str, number: int) -> None:
        """Write chunks to the bucket from now on, for the attempt whose "started" record has that number."""
        self._thread = threading.Thread(
            target=self._write_chunks, args=(store, run_id, task, number), name="run-log", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Write what is left; waits ten seconds at most for a store that does not answer."""
        if self._unfinished:
            self.add("\n")
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_LAST_PUT_SECONDS)

    def _write_chunks(self, store: ObjectStore, run_id: str, task: str, number: int) -> None:
        started_seconds = time.monotonic()
        ended = False
        while not ended:
            elapsed_seconds = time.monotonic() - started_seconds
            pause_seconds = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, elapsed_seconds / _PAUSE_SHARE))
            ended = self._ended.wait(pause_seconds)
            text, num_lines = self._take()
            if not text:
                continue
            try:
                store.put(log_key(run_id, task, number, self._chunk + 1), text.encode("utf-8", "replace"))
                self._chunk += 1
            except StagecoachError:
                with self._lock:
                    self._num_lost_lines += num_lines

    def _take(self) -> tuple[str, int]:
        with self._lock:
            lines = list(self._lines)
            lost, self._num_lost_lines = self._num_lost_lines, 0
            self._lines.clear()
            self._num_characters = 0
        if lost:
            lines.insert(0, f"({lost} lines before this one are not in the bucket)")
        return "".join(f"{without_secrets(line)}\n" for line in lines), len(lines)


class _Tee(io.TextIOBase):
    """Standard error, of which the log gets a copy."""

    def __init__(self, stream: TextIO, log: RunLog) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        self._log.add(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def copied_stderr() -> Iterator[RunLog]:
    """Let a log have a copy of all that Python writes to standard error within the block; at its end the log is ended."""
    log = RunLog()
    stream = sys.stderr
    sys.stderr = _Tee(stream, log)
    try:
        yield log
    finally:
        sys.stderr = stream
        log.end()
