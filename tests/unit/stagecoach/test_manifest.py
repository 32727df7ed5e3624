"""Manifests: digests of blocks and of the whole, the conditional commit, and what is refused."""

import hashlib

import pytest

from stagecoach import manifest as manifest_module
from stagecoach.errors import CorruptObjectError
from stagecoach.manifest import Digests, Manifest, commit_manifest, parse_manifest, read_manifest
from stagecoach.storage.memory import MemoryStore


def _manifest(**changes: object) -> Manifest:
    fields = {"task": "pack", "key": "00ff", "name": "demo", "output_version": 1, "objects": {}} | changes
    return Manifest.model_validate(fields)


def test_one_block_has_no_block_digests() -> None:
    digests = Digests()
    digests.update(b"ab")
    digests.update(b"c")
    entry = digests.entry("x")
    assert (entry.size_bytes, entry.sha256, entry.block_sha256) == (3, hashlib.sha256(b"abc").hexdigest(), ())


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4, 5, 100])
def test_blocks_are_hashed_by_position_however_the_bytes_arrive(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(manifest_module, "BLOCK_BYTES", 4)
    digests = Digests()
    data = b"0123456789"  # blocks 0123 4567 89
    for start in range(0, len(data), chunk_bytes):
        digests.update(data[start : start + chunk_bytes])
    entry = digests.entry("x")
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.block_sha256 == tuple(hashlib.sha256(block).hexdigest() for block in (b"0123", b"4567", b"89"))


def test_large_chunks_are_hashed_side_by_side_to_the_same_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "BLOCK_BYTES", 1 << 20)
    data = bytes(range(256)) * (3 * 4096 + 5)
    digests = Digests()
    digests.update(data)
    blocks = [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]
    assert digests.entry("x").sha256 == hashlib.sha256(data).hexdigest()
    assert digests.entry("x").block_sha256 == tuple(hashlib.sha256(block).hexdigest() for block in blocks)


def test_a_block_that_ends_with_the_object_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "BLOCK_BYTES", 4)
    digests = Digests()
    digests.update(b"01234567")
    assert len(digests.entry("x").block_sha256) == 2


def test_there_is_no_output_before_its_manifest() -> None:
    assert read_manifest(MemoryStore("m"), "packed/demo-00ff/") is None


def test_the_first_commit_stands() -> None:
    store = MemoryStore("m")
    assert commit_manifest(store, "p/", _manifest(summary={"n": 1}))
    assert not commit_manifest(store, "p/", _manifest(summary={"n": 2}))
    found = read_manifest(store, "p/")
    assert found is not None
    assert found.summary == {"n": 1}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"task": "pack"}', b"\xff\xfe"])
def test_what_is_no_manifest_is_refused_by_address(data: bytes) -> None:
    with pytest.raises(CorruptObjectError, match=r"s3://b/p/manifest\.json: not a manifest"):
        parse_manifest(data, "s3://b/p/manifest.json")


def test_a_newer_format_is_refused() -> None:
    data = _manifest().model_copy(update={"format_version": 2}).model_dump_json().encode()
    with pytest.raises(CorruptObjectError, match="expected manifest format 1, got 2"):
        parse_manifest(data, "x")
