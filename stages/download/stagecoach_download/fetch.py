"""Brings planned files into the output: verified, going on after a cut, several at a time.

    read from byte 0 ... cut at byte n ... wait ... read from byte n ... all bytes -> size and digest as planned?

A file that an earlier, killed try of this task has stored completely is taken over instead of being fetched again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

from stagecoach.errors import UnavailableError
from stagecoach.outputs import Output
from stagecoach.recipe.download import ResolvedFile
from stagecoach_download.reader import SourceCut, SourceReader
from stagecoach_download.verify import ContentCheck

MAX_FRUITLESS_ATTEMPTS = 6
PARALLEL_FILES = 4
_MAX_WAIT_SECONDS = 60.0

_log = logging.getLogger("stagecoach.download")


@dataclass(slots=True)
class _Progress:
    """Bytes over all files, counted by several threads."""

    output: Output
    total_bytes: int
    done_bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.done_bytes += num_bytes
            self.output.progress(self.done_bytes, self.total_bytes, f"{self.done_bytes / 2**20:,.0f} MiB")


def fetch_files(
    files: Sequence[ResolvedFile], reader: SourceReader, output: Output, *, wait: Callable[[float], None] = time.sleep
) -> int:
    """Store every file under its own path and return how many were taken over from an earlier try.

    Args:
        files: What to fetch; each is stored only if it is exactly what was planned.
        reader: The place they come from.
        output: Where they go.
        wait: Sleeps that many seconds; tests replace it.

    Raises:
        UnavailableError: A file could not be read, however often it was tried.
        CorruptObjectError: A file is not what was planned.
        MissingInputError: A file is gone.
        ConfigError: Access is denied.
    """
    progress = _Progress(output, sum(file.size_bytes for file in files))

    def fetch(file: ResolvedFile) -> bool:
        if progress.stop.is_set():
            return False
        try:
            if file.sha256 is not None and output.reuse(file.path, file.size_bytes, file.sha256):
                progress.add(file.size_bytes)
                return True
            with output.create(file.path) as stream:
                copy_file(file, reader, stream, on_bytes=progress.add, wait=wait)
        except BaseException:
            progress.stop.set()  # the others need not finish
            raise
        return False

    with ThreadPoolExecutor(max_workers=PARALLEL_FILES, thread_name_prefix="fetch") as pool:
        return sum(pool.map(fetch, sorted(files, key=lambda file: -file.size_bytes)))


def copy_file(
    file: ResolvedFile,
    reader: SourceReader,
    stream: BinaryIO,
    *,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Copy one file and check it; raises as ``fetch_files`` does.

    Attempts that bring at least one byte do not count: a long file over a bad line gets through in the end.
    """
    check = ContentCheck(file, reader.origin)
    fruitless = 0
    while check.size_bytes < file.size_bytes:
        reached = check.size_bytes
        cut: UnavailableError = SourceCut(f"{reader.origin}: {file.path}: the connection ended early")
        chunks = iter(reader.chunks(file, reached))
        while True:
            # Nothing but the source may fail in here: a store that fails has lost bytes that nobody would write again.
            try:
                data = next(chunks, None)
            except UnavailableError as error:
                cut = error
                break
            if data is None:
                break
            check.update(data)
            stream.write(data)
            on_bytes(len(data))
        if check.size_bytes == file.size_bytes:
            break
        fruitless = 0 if check.size_bytes > reached else fruitless + 1
        if fruitless >= MAX_FRUITLESS_ATTEMPTS:
            raise UnavailableError(
                f"{cut}; gave up at byte {check.size_bytes} of {file.size_bytes} after {fruitless} fruitless attempts"
            ) from cut
        seconds = _wait_seconds(cut, fruitless)
        _log.warning("%s; going on from byte %d in %.1f s", cut, check.size_bytes, seconds)
        wait(seconds)
    check.finish()


def _wait_seconds(cut: UnavailableError, fruitless: int) -> float:
    """Return what the server asked for, else 0.5, 1, 2, 4 .. seconds; never more than a minute."""
    asked = cut.retry_after_seconds if isinstance(cut, SourceCut) else None
    return min(_MAX_WAIT_SECONDS, asked if asked is not None else 0.5 * 2**fruitless)
