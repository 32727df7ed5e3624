"""A store in memory that counts what is read of it, and blocks small enough that tiny objects have several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach import manifest, outputs, partial_input
from stagecoach.storage.memory import MemoryStore


class CountingStore(MemoryStore):
    """Counts the bytes that leave it, by range and by whole object."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.ranges: list[tuple[int, int]] = []
        self.files: list[str] = []
        self.num_bytes = 0

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        self.ranges.append((start, size_bytes))
        self.num_bytes += size_bytes
        return super().get_range(key, start, size_bytes)

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        super().get_file(key, path, on_bytes=on_bytes)
        self.files.append(key)
        self.num_bytes += path.stat().st_size


def counting_store(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> CountingStore:
    """Return such a store; objects that are written from now on have blocks of that size."""
    for module in (manifest, outputs, partial_input):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    return CountingStore()
