"""An object on its way to S3 in parts, which are sent side by side while the next one is being filled.

    filled    0000 1111 2222 33        by whoever has the bytes, into a few buffers that are used again
    sent           |--0--|--2--|       by thread 1
                        |--1--|--3|    by thread 2
    complete                       |   now the object has its key

Before that nothing has a key: an error aborts the upload, and one whose process was killed is found by ``unfinished``.
"""

from __future__ import annotations

import mmap
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from stagecoach.storage.s3_calls import S3Calls
from stagecoach.storage.s3_errors import Trouble, code_of, trouble_of
from stagecoach.storage.s3_options import S3Options
from stagecoach.storage.s3_requests import NONCE
from stagecoach.storage.transfer import Part

MAX_PARTS = 10_000
_PARTS_OF_BASE_SIZE = 1_000
_LARGEST_PART_BYTES = 2**30
"""S3 allows 5 GiB; 10,000 parts that grow to this hold more than the 5 TiB of the largest object."""


class S3Upload:
    """One upload in parts; used by one thread at a time, sends from several.

    Only ``close`` may come from another thread than the one that is in ``send``: that of a block that was interrupted.
    """

    def __init__(self, calls: S3Calls, full: str, options: S3Options) -> None:
        """Prepare it; nothing is asked before the first part.

        Args:
            calls: Makes the requests, with retries; errors come out untranslated.
            full: Full key in the bucket.
            options: Size of parts, number of threads, bound of the memory.
        """
        self._calls = calls
        self._full = full
        self._options = options
        self._nonce = secrets.token_hex(16)
        self._upload_id: str | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._sending: deque[Future[dict[str, Any]]] = deque()
        self._sent: list[dict[str, Any]] = []
        self._free: list[memoryview] = []
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_begun(self) -> bool:
        """Whether a part was sent."""
        return self._upload_id is not None

    @property
    def size_bytes(self) -> int:
        """Bytes given to ``send`` so far."""
        return self._size_bytes

    def buffer(self, size_bytes: int) -> memoryview:
        """Return a buffer of at least that size, to be filled and given to ``send``; waits while too much is on its way.

        Raises:
            Exception: What went wrong with an earlier part; the same again at every later call.
        """
        while len(self._sending) >= self._options.threads_for(size_bytes):
            self._sent.append(self._sending[0].result())
            self._sending.popleft()
        while self._free:
            buffer = self._free.pop()
            if len(buffer) >= size_bytes:
                return buffer
        # unlike a bytearray this takes memory only as far as it is filled, and most objects are small
        return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def send(self, buffer: memoryview, size_bytes: int) -> None:
        """Begin to send the first bytes of a buffer as the next part; every one but the last has 5 MiB or more."""
        with self._lock:
            if self._is_closed:
                raise ValueError(f"{self._full}: this upload was given up; nothing can be sent any more")
            if self._upload_id is None:
                self._upload_id = self._calls.retry(lambda ask: ask.create_upload(self._full, self._nonce))
                self._executor = ThreadPoolExecutor(
                    self._options.threads_for(size_bytes), thread_name_prefix="stagecoach-upload"
                )
            assert self._executor is not None
            part = Part(len(self._sent) + len(self._sending), self._size_bytes, size_bytes)
            self._size_bytes += size_bytes
            self._sending.append(self._executor.submit(self._put, self._upload_id, part, buffer))

    def complete(self) -> None:
        """Wait for all parts and make them an object.

        Raises:
            Exception: What went wrong with a part or with the completion.
        """
        while self._sending:
            self._sent.append(self._sending[0].result())
            self._sending.popleft()
        upload_id, parts = self._upload_id or "", self._sent
        try:
            self._calls.retry(lambda ask: ask.complete_upload(self._full, upload_id, parts))
        except Exception as error:
            # an earlier try may have completed it, with its answer lost; then the upload is gone and the object is ours
            if code_of(error) != "NoSuchUpload" or not self._is_ours():
                raise

    def close(self, *, abort: bool) -> None:
        """End the threads, when no request runs any more, and delete the parts of an upload that is given up.

        That is tried once: a store that is down has used up the retries already, and ``gc`` finds what stays.
        """
        with self._lock:  # an interrupted block may have left a thread that is just beginning the upload
            self._is_closed = True
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        if abort and self._upload_id is not None:
            with suppress(Exception):
                self._calls.connected().abort_upload(self._full, self._upload_id)

    def _is_ours(self) -> bool:
        """Say whether the key holds what this upload made."""
        try:
            found = self._calls.retry(lambda ask: ask.head(self._full))
        except Exception as error:
            if trouble_of(error) is Trouble.MISSING:
                return False
            raise
        return bool(found["Metadata"].get(NONCE) == self._nonce)

    def _put(self, upload_id: str, part: Part, buffer: memoryview) -> dict[str, Any]:
        data = buffer[: part.size_bytes]
        answer = self._calls.retry(lambda ask: ask.put_part(self._full, upload_id, part, data))
        self._free.append(buffer)
        return answer


@contextmanager
def upload_in_parts(calls: S3Calls, full: str, options: S3Options) -> Iterator[S3Upload]:
    """Yield an upload that is aborted if the block raises; the block completes it."""
    upload = S3Upload(calls, full, options)
    try:
        yield upload
    except BaseException:
        upload.close(abort=True)
        raise
    upload.close(abort=False)


def next_part_bytes(size_bytes: int, part_bytes: int) -> int:
    """Return the size of the part that follows ``size_bytes`` of an object whose end nobody knows.

    It grows after 1,000 parts, in steps so that buffers can be used again, and so that the 10,000 parts that S3 allows
    hold the 5 TiB that it allows.

    Examples:
        >>> next_part_bytes(1_000 * 16, 16), next_part_bytes(1_001 * 16, 16), next_part_bytes(2_001 * 16, 16)
        (16, 32, 48)
    """
    grown = part_bytes * max(1, -(-size_bytes // (part_bytes * _PARTS_OF_BASE_SIZE)))
    return max(part_bytes, min(grown, _LARGEST_PART_BYTES))


class PartsWriter:
    """Cuts bytes that come in order into the parts of an upload; what fits into one part is left for a plain put."""

    def __init__(self, upload: S3Upload, part_bytes: int) -> None:
        """Write into ``upload``, in parts of that size or, far into a very large object, larger ones."""
        self._upload = upload
        self._part_bytes = part_bytes
        self._buffer = memoryview(b"")
        self._filled = 0

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; the view is not kept.

        Raises:
            Exception: What went wrong with a part.
        """
        view = memoryview(data).cast("B")
        while view:
            if self._filled == len(self._buffer):
                self._next_buffer()
            count = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]

    def finish(self) -> memoryview | None:
        """Complete the upload and return None, or return all bytes if they are too few for one."""
        if not self._upload.is_begun:
            return self._buffer[: self._filled]
        if self._filled:
            self._upload.send(self._buffer, self._filled)
        self._upload.complete()
        return None

    def _next_buffer(self) -> None:
        if self._filled:
            self._upload.send(self._buffer, self._filled)
            self._filled, self._buffer = 0, memoryview(b"")
        self._buffer = self._upload.buffer(next_part_bytes(self._upload.size_bytes, self._part_bytes))
