"""The store that fails on purpose fails where it is told to, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import StoreUnavailable
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, flip_bit


def test_without_faults_it_is_the_inner_store(tmp_path: Path) -> None:
    store: ObjectStore = FaultyStore(MemoryStore("m"))
    store.put("a", b"123")
    assert store.put_if_absent("b", b"")
    assert (store.get("a"), store.get_range("a", 1, 1)) == (b"123", b"2")
    assert [info.key for info in store.list("")] == ["a", "b"]
    store.get_file("a", tmp_path / "f")
    store.put_file("c/d", tmp_path / "f")
    assert list(store.list_folders("")) == ["c"]
    store.delete(["a", "b"])
    assert store.head("a") is None
    assert (store.url, store.local_path("c/d")) == ("memory://m", None)


def test_a_fault_before_the_operation_keeps_it_from_happening() -> None:
    store = FaultyStore(MemoryStore(), [Fault(lambda call: call.operation == "put" and call.key == "a")])
    store.put("b", b"1")
    with pytest.raises(StoreUnavailable, match="a: put fails on purpose"):
        store.put("a", b"1")
    assert store.head("a") is None
    store.put("a", b"1")
    assert [(call.operation, call.key) for call in store.calls][:2] == [("put", "b"), ("put", "a")]


def test_a_fault_after_the_operation_hides_that_it_happened() -> None:
    store = FaultyStore(MemoryStore(), [Fault(lambda call: True, after=True, error=lambda call: KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        store.put_if_absent("a", b"1")
    assert store.get("a") == b"1"


def test_bits_flip_in_what_is_read(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore(), [Fault(lambda call: call.operation != "put", change=flip_bit(9), times=3)])
    store.put("a", b"\x00\x00")
    assert store.get("a") == b"\x00\x02"
    assert store.get_range("a", 0, 2) == b"\x00\x02"
    seen = bytearray()
    store.get_file("a", tmp_path / "f", on_bytes=seen.extend)
    assert (tmp_path / "f").read_bytes() == bytes(seen) == b"\x00\x02"
    assert store.get("a") == b"\x00\x00"
