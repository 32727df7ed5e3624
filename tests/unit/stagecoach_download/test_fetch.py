"""A fetched file is exactly what was planned, or there is none: cuts, busy servers, changed and longer files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.errors import CorruptObjectError, StoreUnavailable, UnavailableError
from stagecoach.outputs import Output
from stagecoach.recipe.download import ResolvedFile
from stagecoach.storage.memory import MemoryStore
from stagecoach_download.fetch import MAX_FRUITLESS_ATTEMPTS, copy_file, fetch_files
from stagecoach_download.reader import SourceCut

CONTENT = bytes(range(100))
FILE = ResolvedFile(path="a/b.bin", size_bytes=100, sha256=hashlib.sha256(CONTENT).hexdigest())


class ScriptedReader:
    """Gives out at most so many bytes at each request, then the connection breaks."""

    origin = "scripted"

    def __init__(self, content: bytes, bytes_per_request: list[int], retry_after_seconds: float | None = None) -> None:
        self.content = content
        self.starts: list[int] = []
        self._script = iter(bytes_per_request)
        self._retry_after_seconds = retry_after_seconds

    def chunks(self, file: ResolvedFile, start_bytes: int) -> Iterator[bytes]:
        self.starts.append(start_bytes)
        num_bytes = next(self._script, len(self.content))
        yield from (
            self.content[i : i + 1] for i in range(start_bytes, min(start_bytes + num_bytes, len(self.content)))
        )
        if start_bytes + num_bytes < len(self.content):
            raise SourceCut("cut", self._retry_after_seconds)


def copied(reader: ScriptedReader, file: ResolvedFile = FILE) -> tuple[bytes, list[float]]:
    stream, waits = io.BytesIO(), list[float]()
    copy_file(file, reader, stream, wait=waits.append)
    return stream.getvalue(), waits


def test_a_cut_transfer_goes_on_where_it_stopped() -> None:
    reader = ScriptedReader(CONTENT, [30, 0, 50])
    assert copied(reader) == (CONTENT, [0.5, 1.0, 0.5])
    assert reader.starts == [0, 30, 30, 80]


def test_the_time_that_a_server_asks_for_is_waited() -> None:
    assert copied(ScriptedReader(CONTENT, [0], retry_after_seconds=7.0)) == (CONTENT, [7.0])
    assert copied(ScriptedReader(CONTENT, [0], retry_after_seconds=9e9)) == (CONTENT, [60.0])


def test_a_source_without_progress_is_given_up() -> None:
    reader = ScriptedReader(CONTENT, [10] + [0] * 50)
    with pytest.raises(UnavailableError, match="gave up at byte 10 of 100 after 6 fruitless attempts"):
        copied(reader)
    assert len(reader.starts) == 1 + MAX_FRUITLESS_ATTEMPTS


class FullDisk(io.BytesIO):
    """A place for an output that has no room once, and then has."""

    has_failed = False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() == 10 and not self.has_failed:
            self.has_failed = True
            raise StoreUnavailable("file:///full", "a", "no space left")
        return super().write(data)


def test_a_store_that_fails_is_not_a_source_that_was_cut() -> None:
    """Going on behind the bytes that it lost would make an object with a hole, under the digest of a whole one."""
    waits = list[float]()
    with pytest.raises(StoreUnavailable, match="no space left"):
        copy_file(FILE, ScriptedReader(CONTENT, [30]), FullDisk(), wait=waits.append)
    assert waits == []


def test_slow_progress_is_never_given_up() -> None:
    assert copied(ScriptedReader(CONTENT, [1] * 100))[0] == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"!", r"scripted: a/b\.bin: expected sha256 "),
        (CONTENT + b"!", "expected 100 bytes, got more"),
    ],
    ids=["changed", "longer"],
)
def test_a_file_that_changed_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CorruptObjectError, match=message):
        copied(ScriptedReader(content, []))


def test_git_blob_ids_are_checked() -> None:
    """``printf hello | git hash-object --stdin`` gives this id."""
    file = ResolvedFile(path="x", size_bytes=5, git_blob_sha1="b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0")
    assert copied(ScriptedReader(b"hello", []), file)[0] == b"hello"
    with pytest.raises(CorruptObjectError, match="expected git blob id b6fc4c620b67"):
        copied(ScriptedReader(b"hellO", []), file)


def test_an_empty_file_needs_no_request() -> None:
    reader = ScriptedReader(b"", [])
    empty = ResolvedFile(path="x", size_bytes=0, sha256=hashlib.sha256(b"").hexdigest())
    assert copied(reader, empty) == (b"", [])
    assert reader.starts == []


def test_files_lie_under_their_own_paths(tmp_path: Path) -> None:
    output = Output(MemoryStore("t"), "sources/models/x-0/", tmp_path)
    assert fetch_files([FILE], ScriptedReader(CONTENT, []), output) == 0
    assert output.objects["a/b.bin"].sha256 == FILE.sha256


def test_nothing_is_stored_of_a_file_that_changed(tmp_path: Path) -> None:
    store = MemoryStore("t")
    output = Output(store, "sources/models/x-0/", tmp_path)
    with pytest.raises(CorruptObjectError):
        fetch_files([FILE], ScriptedReader(CONTENT[:-1] + b"!", []), output)
    assert list(store.list("")) == []


def test_files_of_an_earlier_try_are_taken_over(tmp_path: Path) -> None:
    store = MemoryStore("t")
    fetch_files([FILE], ScriptedReader(CONTENT, []), Output(store, "p/", tmp_path))
    reader = ScriptedReader(CONTENT, [])
    output = Output(store, "p/", tmp_path)
    assert fetch_files([FILE], reader, output) == 1
    assert reader.starts == []
    assert output.objects["a/b.bin"].sha256 == FILE.sha256
