"""Outputs and inputs: complete or absent, and every byte checked before it is used."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stagecoach import manifest, outputs
from stagecoach.errors import CorruptObjectError, MissingInputError
from stagecoach.outputs import Output, open_input
from stagecoach.storage.base import ObjectStore, Write
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, flip_bit

PREFIX = "packed/demo-00ff/"
FIELDS = {"task": "pack", "key": "00ff", "name": "demo", "output_version": 1}


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return MemoryStore("m") if request.param == "memory" else LocalStore(tmp_path / "store")


def _finished(store: ObjectStore, tmp_path: Path, **objects: bytes) -> Output:
    output = Output(store, PREFIX, tmp_path / "scratch")
    for name, data in objects.items():
        output.write_bytes(name, data)
    assert output.commit(**FIELDS)
    return output


def test_what_was_written_is_read_back(store: ObjectStore, tmp_path: Path) -> None:
    _finished(store, tmp_path, a=b"one", b=b"")
    read = open_input(store, PREFIX, tmp_path / "in")
    assert (read.names(), read.read_bytes("a"), read.read_bytes("b")) == (["a", "b"], b"one", b"")


def test_before_the_commit_there_is_nothing_to_open(store: ObjectStore, tmp_path: Path) -> None:
    Output(store, PREFIX, tmp_path / "scratch").write_bytes("a", b"one")
    with pytest.raises(MissingInputError, match="no finished output here"):
        open_input(store, PREFIX, tmp_path / "in")


def test_a_stream_that_raises_leaves_no_object(store: ObjectStore, tmp_path: Path) -> None:
    output = Output(store, PREFIX, tmp_path / "scratch")
    with pytest.raises(RuntimeError), output.create("a") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert list(store.list(PREFIX)) == []
    assert output.objects == {}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_takes_nothing_after_its_block(store: ObjectStore, tmp_path: Path, fails: bool) -> None:
    """A buffer that is emptied late would write to whatever file has the descriptor's number by then."""
    output = Output(store, PREFIX, tmp_path / "scratch")
    with suppress(RuntimeError), output.create("a") as stream:
        stream.write(b"half")
        if fails:
            raise RuntimeError
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"late")
    stream.close()
    assert [store.get(info.key) for info in store.list(PREFIX)] == ([] if fails else [b"half"])


def test_a_name_cannot_be_written_twice(store: ObjectStore, tmp_path: Path) -> None:
    output = Output(store, PREFIX, tmp_path / "scratch")
    output.write_bytes("a", b"one")
    with pytest.raises(ValueError, match="expected a new name"):
        output.write_bytes("a", b"two")


def test_two_tries_do_not_mix_and_the_first_commit_stands(store: ObjectStore, tmp_path: Path) -> None:
    first, second = Output(store, PREFIX, tmp_path / "1"), Output(store, PREFIX, tmp_path / "2")
    first.write_bytes("a", b"first")
    second.write_bytes("a", b"second")
    assert first.commit(**FIELDS)
    assert not second.commit(**FIELDS)
    assert open_input(store, PREFIX, tmp_path / "in").read_bytes("a") == b"first"


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    output = _finished(store, tmp_path, a=b"one")
    path = store.local_path(output.objects["a"].path)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"two")
    with pytest.raises(CorruptObjectError, match="expected 3 bytes with sha256"):
        open_input(store, PREFIX, tmp_path / "in").path("a")


def test_damage_on_the_way_is_read_again_and_damage_in_the_store_refused(tmp_path: Path) -> None:
    inner = MemoryStore("m")
    _finished(inner, tmp_path, a=b"one")
    for times in (1, 2):
        fault = Fault(when=lambda call: call.operation == "get_file", change=flip_bit(5), times=times)
        source = open_input(FaultyStore(inner, [fault]), PREFIX, tmp_path / f"in-{times}")
        if times == 1:
            assert source.read_bytes("a") == b"one"
        else:
            with pytest.raises(CorruptObjectError, match="expected 3 bytes with sha256"):
                source.path("a")


@pytest.mark.parametrize("data", [b"0123456789", b"01234567"], ids=["a part of a block at the end", "whole blocks"])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_what_is_fetched_is_checked_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, times: int
) -> None:
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 4)
    inner = MemoryStore("m")
    _finished(inner, tmp_path, a=data)
    faults = [Fault(when=lambda call: call.operation == "get_file", change=flip_bit(50), times=times)] if times else []
    source = open_input(FaultyStore(inner, faults), PREFIX, tmp_path / "in")
    if times < 2:
        assert source.read_bytes("a") == data
    else:
        with pytest.raises(CorruptObjectError, match=f"expected {len(data)} bytes with sha256"):
            source.path("a")


def test_an_object_that_is_not_listed_is_named(store: ObjectStore, tmp_path: Path) -> None:
    _finished(store, tmp_path, a=b"one")
    with pytest.raises(MissingInputError, match="expected an object 'b', its manifest lists a"):
        open_input(store, PREFIX, tmp_path / "in").path("b")


def test_an_earlier_try_is_used_again_only_with_the_same_bytes(store: ObjectStore, tmp_path: Path) -> None:
    interrupted = Output(store, PREFIX, tmp_path / "1")
    interrupted.write_bytes("a", b"one")
    interrupted.write_bytes("b", b"bad")
    output = Output(store, PREFIX, tmp_path / "2")
    assert output.reuse("a", 3, hashlib.sha256(b"one").hexdigest())
    assert not output.reuse("b", 3, hashlib.sha256(b"two").hexdigest())
    assert not output.reuse("c", 3, hashlib.sha256(b"one").hexdigest())
    assert output.objects["a"].path == interrupted.objects["a"].path


@pytest.mark.parametrize("position", [None, 0, 5, 9])
def test_a_large_file_is_checked_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int | None
) -> None:
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 4)
    monkeypatch.setattr(outputs, "BLOCK_BYTES", 4)
    store = LocalStore(tmp_path / "store")
    path = store.local_path(_finished(store, tmp_path, a=b"0123456789").objects["a"].path)
    assert path is not None
    path.chmod(0o644)
    if position is None:
        assert open_input(store, PREFIX, tmp_path / "in").read_bytes("a") == b"0123456789"
        return
    path.write_bytes(b"0123456789"[:position] + b"x" + b"0123456789"[position + 1 :])
    with pytest.raises(CorruptObjectError):
        open_input(store, PREFIX, tmp_path / "in").path("a")


@pytest.mark.parametrize("size_bytes", [1, 2**20])
def test_a_write_that_fails_reaches_whoever_writes(size_bytes: int, tmp_path: Path) -> None:
    """Large parts are written by a thread of their own."""

    class Full(MemoryStore):
        @contextmanager
        def create(self, key: str) -> Iterator[Write]:
            def write(data: bytes | memoryview) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            yield write

    output = Output(Full("full"), PREFIX, tmp_path)
    with pytest.raises(OSError, match="No space left"), output.create("a") as stream:
        stream.write(bytes(size_bytes))
    assert output.objects == {}


def test_large_and_small_parts_keep_their_order(store: ObjectStore, tmp_path: Path) -> None:
    parts = [bytes([number]) * size for number, size in enumerate((5, 2**20, 3, 2**18, 2**18 - 1))]
    output = Output(store, PREFIX, tmp_path / "scratch")
    with output.create("a") as stream:
        for part in parts:
            stream.write(part)
    output.commit(**FIELDS)
    assert open_input(store, PREFIX, tmp_path / "in").read_bytes("a") == b"".join(parts)


def test_names_that_look_alike_can_be_written_side_by_side(store: ObjectStore, tmp_path: Path) -> None:
    output = Output(store, PREFIX, tmp_path / "scratch")
    with output.create("a/b") as first, output.create("a__b") as second:
        first.write(b"first")
        second.write(b"second")
    output.commit(**FIELDS)
    read = open_input(store, PREFIX, tmp_path / "in")
    assert (read.read_bytes("a/b"), read.read_bytes("a__b")) == (b"first", b"second")
