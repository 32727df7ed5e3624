"""What moving bytes needs whatever the store is: retries with backoff, files that appear whole, parts side by side.

    part 0 |####|          fetched by thread 1, written at its place in the file
    part 1   |######|      fetched by thread 2         ..
    part 2      |###|      fetched by thread 1         ..
    seen   .....0....1.2   handed to ``on_bytes`` in order, by the calling thread, while later parts come in

What is handed on is read back from the file, which the page cache still holds: no part stays in memory.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stagecoach.errors import ConfigError, UnavailableError

_T = TypeVar("_T")
_S = TypeVar("_S")

_READ_BACK_BYTES = 256 * 1024
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently something that may fail for a moment is tried again.

    The pause before try n+1 is drawn evenly from 0 to ``first_pause_seconds * 2**(n-1)``, but at most
    ``longest_pause_seconds`` ("full jitter"), so that many clients that failed together do not come back together.
    """

    max_tries: int = 8
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 20.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def run(self, action: Callable[[], _T], may_pass: Callable[[Exception, int], bool]) -> _T:
        """Return what ``action`` returns, trying again after errors that ``may_pass``.

        Args:
            action: What may fail; called at most ``max_tries`` times.
            may_pass: Whether the error, the n-th in a row, may be gone at the next try.

        Raises:
            Exception: The last error, unchanged, when tries are used up or it will not pass.
        """
        for failures in range(1, self.max_tries):
            try:
                return action()
            except Exception as error:
                if not may_pass(error, failures):
                    raise
                self.sleep(self.pause_seconds(failures))
        return action()

    def pause_seconds(self, failures: int) -> float:
        """Return how long to wait after that many failures in a row."""
        return self.random() * min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(failures - 1, 60))


@dataclass(frozen=True, slots=True)
class Part:
    """A run of an object's bytes: ``start`` (included) to ``start + size_bytes`` (excluded)."""

    index: int
    start: int
    size_bytes: int


def split_into_parts(size_bytes: int, part_bytes: int, max_parts: int) -> list[Part]:
    """Return the parts of an object, in order; all but the last are equal, larger than asked if there were too many.

    Example: 10 bytes in parts of 4 are 0..4, 4..8, 8..10; with at most 2 parts they are 0..5, 5..10.
    """
    part_bytes = max(part_bytes, -(-size_bytes // max_parts), 1)
    starts = range(0, size_bytes, part_bytes)
    return [Part(index, start, min(part_bytes, size_bytes - start)) for index, start in enumerate(starts)]


def in_order(
    executor: ThreadPoolExecutor, work: Callable[[_S], _T], items: list[_S], max_ahead: int
) -> Iterator[tuple[_S, _T]]:
    """Yield each item with its result, in the order of the items, while at most ``max_ahead`` of them are worked on.

    Args:
        executor: Threads that do the work.
        work: Called once for each item, side by side.
        items: What to work on.
        max_ahead: Bounds the memory held by results that nobody has taken yet.

    Raises:
        Exception: What ``work`` raised, for the first item in order that failed; all that ran has ended by then.
    """
    waiting: deque[tuple[_S, Future[_T]]] = deque()
    ahead = iter(items)
    try:
        for item in ahead:
            waiting.append((item, executor.submit(work, item)))
            if len(waiting) >= max_ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        for _, future in waiting:
            if not future.cancelled():
                future.exception()


@contextmanager
def new_local_file(path: Path) -> Iterator[int]:
    """Open a new file for writing and give it its name when the block ends well; otherwise nothing stays behind.

    Yields:
        The file descriptor.

    Raises:
        UnavailableError: The disk is full.
        ConfigError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    with local_disk_errors(path):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        with local_disk_errors(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def local_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a local file into a sentence and the right exit code.

    Raises:
        UnavailableError: The disk is full or does not answer.
        ConfigError: The file or its folder is not there or must not be used.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise UnavailableError(
                f"{path}: no space left on its disk ({_free(path)} free); free some or choose another scratch folder"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise ConfigError(f"{path}: cannot be used ({error.strerror}); choose another scratch folder") from error
        raise UnavailableError(f"{path}: its disk fails ({error.strerror}); try another machine or folder") from error


def write_all(descriptor: int, data: bytes | memoryview, offset: int, path: Path) -> None:
    """Write all bytes at a place of an open file; ``path`` is named in errors.

    Raises:
        UnavailableError: The disk is full or does not answer.
    """
    view = memoryview(data)
    with local_disk_errors(path):
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written


def read_back(descriptor: int, part: Part, path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a part that was just written, from the page cache; each view is good until the next one.

    Raises:
        UnavailableError: The disk does not answer.
    """
    buffer = memoryview(bytearray(min(part.size_bytes, _READ_BACK_BYTES)))
    done = 0
    while done < part.size_bytes:
        with local_disk_errors(path):
            count = os.preadv(descriptor, [buffer[: part.size_bytes - done]], part.start + done)
        if count == 0:
            raise UnavailableError(f"{path}: became shorter while it was written; see who else writes there")
        yield buffer[:count]
        done += count


def _free(path: Path) -> str:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return "an unknown number of bytes"
    return f"{status.f_bavail * status.f_frsize / 2**20:.0f} MiB"
