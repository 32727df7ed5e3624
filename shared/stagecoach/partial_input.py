"""Fetches the parts of large objects that somebody reads, instead of the objects, and checks each part.

    object, 5 blocks of 64 MiB      | 0     | 1     | 2     | 3     | 4 |      wanted: bytes in 0 and in 3
    local file, as long             | here  | hole  | hole  | here  |   |      2 blocks fetched, each against its digest

A machine that trains one of eight pipeline ranks needs an eighth of a checkpoint, and export needs no moments of the
optimizer, which are two thirds of it. What was not fetched reads as zeros, so only who asks for the bytes beforehand may
read them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stagecoach.errors import CorruptObjectError
from stagecoach.manifest import BLOCK_BYTES, ObjectEntry
from stagecoach.outputs import Input
from stagecoach.parallel.rectangles import Span
from stagecoach.storage.transfer import write_all

_BLOCKS_AT_ONCE = 4
_RANGE_BYTES = 8 * 1024 * 1024
"""Of one request; bounds the memory, and is small enough for the allocator to use it again."""


class PartialInput:
    """The objects of an input, fetched as far as they are read."""

    def __init__(self, source: Input, scratch: Path) -> None:
        """Fetch from ``source`` into files below ``scratch``."""
        self.source = source
        self._scratch = scratch
        self._fetched: dict[str, set[int]] = {}

    def path(self, name: str, spans: Iterable[Span]) -> Path:
        """Return a local file that holds these bytes of an object, checked.

        Args:
            name: The object.
            spans: First byte and the one after the last, of each part that will be read.

        Returns:
            A file as long as the object; holes where nothing was asked for. Of a directory store its own file, and of an
            object of a single block the whole.

        Raises:
            CorruptObjectError: A block differs from its record.
        """
        entry = self.source.entry(name)
        if not entry.block_sha256 or self.source.store.local_path(entry.path) is not None:
            return self.source.path(name)
        fetched = self._fetched.setdefault(name, set())
        wanted = {number for start, end in spans if start < end for number in _blocks(start, end)} - fetched
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / name.replace("/", "__")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, entry.size_bytes)
            with ThreadPoolExecutor(_BLOCKS_AT_ONCE) as pool:
                list(pool.map(lambda number: self._fetch(entry, number, descriptor, path), sorted(wanted)))
        finally:
            os.close(descriptor)
        fetched |= wanted
        return path

    def _fetch(self, entry: ObjectEntry, number: int, descriptor: int, path: Path) -> None:
        start = number * BLOCK_BYTES
        size_bytes = min(BLOCK_BYTES, entry.size_bytes - start)
        # bytes that were damaged on their way are right the second time
        for _ in range(2):
            digest = hashlib.sha256()
            for at in range(start, start + size_bytes, _RANGE_BYTES):
                data = self.source.store.get_range(entry.path, at, min(_RANGE_BYTES, start + size_bytes - at))
                digest.update(data)
                write_all(descriptor, data, at, path)
            if digest.hexdigest() == entry.block_sha256[number]:
                return
        raise CorruptObjectError(
            f"{self.source.store.url.rstrip('/')}/{entry.path}: bytes {start} to {start + size_bytes} are not those that"
            f" were recorded; delete {self.source.prefix}manifest.json to make the output again"
        )


def fetch_tensors(
    source: Input, scratch: Path, reads: Callable[[Callable[[str], Path]], Iterable[tuple[str, Span]]]
) -> dict[str, Path]:
    """Fetch the headers of the tensor files that are read, then the bytes that are.

    Args:
        source: The input that holds the files.
        scratch: Where parts of them go.
        reads: Given files that hold at least their headers, by object name, yields the object and the bytes of each read.

    Returns:
        Local files by object name.

    Raises:
        CorruptObjectError: A block differs from its record.
    """
    partial = PartialInput(source, scratch)

    def with_header(name: str) -> Path:
        with open(partial.path(name, [(0, 8)]), "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        return partial.path(name, [(0, 8 + length)])

    spans: dict[str, list[Span]] = {}
    for name, span in reads(with_header):
        spans.setdefault(name, []).append(span)
    return {name: partial.path(name, found) for name, found in spans.items()}


def _blocks(start: int, end: int) -> range:
    return range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
