"""Scratch files that let memory stay flat whatever the number of rows: records that are appended and read back mapped,
and a set of digests.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_STRUCT_CODES = {"<u8": "Q", "<u4": "I", "<u2": "H", "|V16": "16s"}
_BUFFER_BYTES = 1 << 18
_FIRST_SLOTS = 1 << 16


def make_room(descriptor: int, size_bytes: int) -> None:
    """Give a file so many bytes, which the disk has then set aside.

    Mapped memory of a file that only says that it is so long ends the process by SIGBUS where the disk is full.

    Raises:
        OSError: The disk has no room, which is a fault that passes.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
    else:  # macOS
        os.truncate(descriptor, size_bytes)


class RecordFile:
    """Records of one structured dtype, appended one by one to a file."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Create an empty file.

        Args:
            path: The file.
            dtype: Fields of the types <u8, <u4, <u2 and V16, without gaps.
        """
        self._path = path
        self._dtype = dtype
        codes = [_STRUCT_CODES[dtype[name].str] for name in dtype.names or ()]
        self._pack = struct.Struct("<" + "".join(codes)).pack
        self._stream = open(path, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed by close()
        self._count = 0
        self._mapped: npt.NDArray[Any] = np.zeros(0, dtype)

    def __len__(self) -> int:
        """Return the number of records."""
        return self._count

    def append(self, *values: Any) -> None:
        """Append one record, its fields in order."""
        self._stream.write(self._pack(*values))
        self._count += 1

    @property
    def records(self) -> npt.NDArray[Any]:
        """All records so far, mapped; not to be changed."""
        if len(self._mapped) < self._count:
            self._stream.flush()
            self._mapped = np.memmap(self._path, self._dtype, mode="r").view(np.ndarray)  # slices are quicker
        return self._mapped

    def close(self) -> None:
        """Remove the file; arrays that were handed out stay valid."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


class DigestSet:
    """Which digests of 16 bytes were seen: an open hash table of 16 bytes a slot, at most half full, in a mapped file."""

    def __init__(self, folder: Path) -> None:
        """Start empty, with a nameless file in ``folder``."""
        self._folder = folder
        self._count = 0
        self._open(_FIRST_SLOTS)

    def add(self, digest: bytes) -> bool:
        """Add a digest; True if it is new."""
        high, low = struct.unpack("<QQ", digest)
        is_new = self._insert(high, low or 1)  # a slot of zeros is free
        if is_new:
            self._count += 1
            if 2 * self._count > self._slots:
                self._grow()
        return is_new

    def _insert(self, high: int, low: int) -> bool:
        table, last = self._table, 2 * self._slots - 2
        place = 2 * high & last
        while (found := table[place + 1]) != 0:
            if found == low and table[place] == high:
                return False
            place = place + 2 & last
        table[place], table[place + 1] = high, low
        return True

    def _open(self, slots: int) -> None:
        self._slots = slots
        with tempfile.TemporaryFile(dir=self._folder) as file:
            make_room(file.fileno(), 16 * slots)
            self._map = mmap.mmap(file.fileno(), 16 * slots)
        self._table = memoryview(self._map).cast("Q")

    def _grow(self) -> None:
        old_map, old = self._map, self._table
        self._open(2 * self._slots)
        for place in range(0, len(old), 2):
            if old[place + 1]:
                self._insert(old[place], old[place + 1])
        old.release()
        old_map.close()

    def close(self) -> None:
        """Give the file back."""
        self._table.release()
        self._map.close()
