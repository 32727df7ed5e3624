"""What every store promises, the same lines for memory, directory and S3 (a real SeaweedFS)."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing
from stagecoach.storage.base import ObjectStore


def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after)]


def filled(store: ObjectStore, *names: str) -> ObjectStore:
    for name in names:
        store.put(name, name.encode())
    return store


class TestObjectStore:
    """A pipeline written against one store must find the same behaviour in the others."""

    def test_what_was_put_is_read_back(self, store: ObjectStore) -> None:
        store.put("runs/x/plan.json", b"\x00\xff plan")
        assert store.get("runs/x/plan.json") == b"\x00\xff plan"

    def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        info = store.head("empty")
        assert info is not None
        assert info.size_bytes == 0

    def test_a_put_replaces(self, store: ObjectStore) -> None:
        store.put("tracker", b"152")
        store.put("tracker", b"7")
        assert store.get("tracker") == b"7"

    def test_head_knows_size_time_and_changes(self, store: ObjectStore) -> None:
        store.put("a", b"12345")
        first = store.head("a")
        assert first is not None
        assert (first.key, first.size_bytes) == ("a", 5)
        assert abs(first.modified_unix_seconds - time.time()) < 60
        store.put("a", b"54321")
        second = store.head("a")
        assert second is not None
        assert second.etag != first.etag
        assert next(iter(store.list("a"))) == second

    def test_what_is_not_there_is_missing(self, store: ObjectStore, tmp_path: Path) -> None:
        filled(store, "folder/x")
        assert store.head("nothing") is None
        assert store.head("folder") is None
        for read in (
            store.get,
            lambda key: store.get_range(key, 0, 1),
            lambda key: store.get_file(key, tmp_path / "f"),
        ):
            with pytest.raises(ObjectMissing, match=re.escape(f"{store.url}/nothing: no such object")):
                read("nothing")
        assert not (tmp_path / "f").exists()

    def test_a_range_is_exact(self, store: ObjectStore) -> None:
        store.put("digits", b"0123456789")
        assert store.get_range("digits", 3, 4) == b"3456"
        assert store.get_range("digits", 0, 10) == b"0123456789"
        assert store.get_range("digits", 9, 1) == b"9"
        assert store.get_range("digits", 4, 0) == b""

    @pytest.mark.parametrize(("start", "size_bytes"), [(8, 3), (0, 11), (20, 1)])
    def test_a_range_beyond_the_end_is_an_error(self, store: ObjectStore, start: int, size_bytes: int) -> None:
        store.put("digits", b"0123456789")
        with pytest.raises(CorruptObjectError):
            store.get_range("digits", start, size_bytes)

    @pytest.mark.parametrize("size_bytes", [0, 1, 1000, 5_000_000])
    def test_a_file_goes_there_and_back(self, store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
        data = bytes(range(256)) * (size_bytes // 256) + bytes(range(size_bytes % 256))
        (tmp_path / "source").write_bytes(data)
        store.put_file("try-1/file", tmp_path / "source")
        seen = bytearray()
        store.get_file("try-1/file", tmp_path / "target", on_bytes=seen.extend)
        assert (tmp_path / "target").read_bytes() == data
        assert bytes(seen) == data
        assert (tmp_path / "source").read_bytes() == data

    def test_a_file_replaces_what_lay_in_its_place(self, store: ObjectStore, tmp_path: Path) -> None:
        store.put("a", b"new")
        (tmp_path / "f").write_bytes(b"old and longer")
        store.get_file("a", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["f"]

    def test_nothing_stays_behind_when_the_reader_of_a_file_gives_up(self, store: ObjectStore, tmp_path: Path) -> None:
        store.put("a", b"data")

        def give_up(_: memoryview) -> None:
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            store.get_file("a", tmp_path / "f", on_bytes=give_up)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []

    @pytest.mark.parametrize("sizes_bytes", [(), (0,), (5,), (1, 2**20, 3), (2**24,), (2**24, 1), (2**22,) * 9])
    def test_an_object_is_written_piece_by_piece(self, store: ObjectStore, sizes_bytes: tuple[int, ...]) -> None:
        """One part of S3's is 2**24 bytes."""
        pieces = [os.urandom(size_bytes) for size_bytes in sizes_bytes]
        with store.create("try-1/a") as write:
            for piece in pieces:
                buffer = bytearray(piece)
                write(memoryview(buffer))
                buffer[:] = bytes(len(buffer))  # the view is not kept
            assert keys(store) == []
        assert store.get("try-1/a") == b"".join(pieces)
        assert list(store.unfinished()) == []

    def test_a_write_that_failed_cannot_be_passed_over(self, store: ObjectStore) -> None:
        failures = 0
        with pytest.raises(TypeError), store.create("try-1/a") as write:
            write(b"one")
            for data in ("no bytes", b"two"):
                try:
                    write(data)  # type: ignore[arg-type]
                except TypeError:
                    failures += 1
        assert failures == 2
        assert keys(store) == []
        assert list(store.unfinished()) == []

    @pytest.mark.parametrize("size_bytes", [0, 5, 2**24 + 1, 2**26])
    def test_a_block_that_raises_leaves_no_object(self, store: ObjectStore, size_bytes: int) -> None:
        with pytest.raises(OSError, match="of the block's own"), store.create("try-1/a") as write:
            write(bytes(size_bytes))
            raise OSError("of the block's own")
        assert keys(store) == []
        assert list(store.unfinished()) == []

    def test_the_first_conditional_put_wins(self, store: ObjectStore) -> None:
        assert store.put_if_absent("manifest.json", b"first", content_type="application/json")
        assert not store.put_if_absent("manifest.json", b"second")
        assert not store.put_if_absent("manifest.json", b"first")
        assert store.get("manifest.json") == b"first"

    def test_a_conditional_put_works_again_after_a_delete(self, store: ObjectStore) -> None:
        assert store.put_if_absent("m", b"1")
        store.delete(["m"])
        assert store.put_if_absent("m", b"2")
        assert store.get("m") == b"2"

    def test_of_many_threads_exactly_one_wins(self, store: ObjectStore) -> None:
        for round_number in range(5):
            key = f"race/{round_number}"
            with ThreadPoolExecutor(8) as executor:
                won = list(executor.map(lambda n, key=key: store.put_if_absent(key, b"%d" % n), range(8)))
            assert won.count(True) == 1
            assert store.get(key) == b"%d" % won.index(True)

    def test_a_listing_is_in_the_order_of_bytes(self, store: ObjectStore) -> None:
        """Directory walks and SeaweedFS would say a/b before a-b; S3 says '-' (2d) and '.' (2e) before '/' (2f)."""
        filled(store, "a/b", "a-b", "a.b", "a0", "a/c/d", "a/c-d", "A", "b", "ä", "a-b-c/x", "a b", "日")
        assert keys(store) == ["A", "a b", "a-b", "a-b-c/x", "a.b", "a/b", "a/c-d", "a/c/d", "a0", "b", "ä", "日"]
        assert keys(store, "a") == ["a b", "a-b", "a-b-c/x", "a.b", "a/b", "a/c-d", "a/c/d", "a0"]
        assert keys(store, "a/") == ["a/b", "a/c-d", "a/c/d"]

    def test_a_prefix_is_a_plain_string(self, store: ObjectStore) -> None:
        filled(store, "runs/20261125/a", "runs/20261126/b", "runs/2027/c", "run")
        assert keys(store, "runs/2026") == ["runs/20261125/a", "runs/20261126/b"]
        assert keys(store, "runs/20261125/a") == ["runs/20261125/a"]
        assert keys(store, "nothing") == []
        assert keys(store, "nothing/at/all") == []

    @pytest.mark.parametrize(
        "start_after", ["a", "a b", "a-b", "a.b", "a/", "a/b", "a/c", "a/c-d", "a/c/d", "a0", "b", "z"]
    )
    def test_a_listing_starts_after_any_string(self, store: ObjectStore, start_after: str) -> None:
        names = ["a b", "a-b", "a.b", "a/b", "a/c-d", "a/c/d", "a0", "b"]
        filled(store, *names)
        assert keys(store, "", start_after) == [name for name in names if name > start_after]
        assert keys(store, "a/", start_after) == [n for n in names if n > start_after and n.startswith("a/")]

    def test_folders_are_listed_by_name(self, store: ObjectStore) -> None:
        filled(store, "runs/b/x", "runs/a/y/z", "runs/a-1/x", "runs/note", "other/c/x")
        assert list(store.list_folders("runs/")) == ["a-1", "a", "b"]
        assert list(store.list_folders("")) == ["other", "runs"]
        assert list(store.list_folders("runs/a/")) == ["y"]
        assert list(store.list_folders("runs/a/y/")) == []
        assert list(store.list_folders("nothing/")) == []

    def test_a_folder_is_named_with_its_slash(self, store: ObjectStore) -> None:
        with pytest.raises(ConfigError, match="ends with '/'"):
            list(store.list_folders("runs"))

    def test_deleting_removes_and_forgives(self, store: ObjectStore) -> None:
        filled(store, "d/a", "d/b", "d/c/e", "f")
        store.delete(["d/a", "d/c/e", "d/never", "never/there"])
        assert keys(store) == ["d/b", "f"]
        store.delete(iter(["d/b", "f", "f"]))
        assert keys(store) == []
        # SeaweedFS removes an empty folder some time later
        assert store.url.startswith("s3:") or list(store.list_folders("")) == []
        store.delete([])

    def test_a_folder_may_come_again(self, store: ObjectStore) -> None:
        filled(store, "d/a/b")
        store.delete(["d/a/b"])
        filled(store, "d/a/c")
        assert keys(store) == ["d/a/c"]

    @pytest.mark.parametrize(
        "key",
        ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a\nb", "a\x00", "a\x7f", "a\\b",
         "a\ud800", "x" * 256, "/".join(["y" * 200] * 5)],
    )  # fmt: skip
    def test_a_key_that_not_every_store_can_hold_is_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(ConfigError, match="expected a relative path"):
            store.put(key, b"")
        for read in (
            *(store.head, store.get, store.local_path),
            lambda k: store.put_if_absent(k, b""),
            lambda k: store.create(k).__enter__(),
        ):
            with pytest.raises(ConfigError):
                read(key)
        with pytest.raises(ConfigError):
            store.delete([key])

    @pytest.mark.parametrize(
        "key",
        ["a b", "a+b", "a%2Fb", "a?b=c&d", "a#b", "ä/日本", "~x", "-", "a'b\"(c)*!", "=", "a:b;c,d@e$", "..a", "a..",
         ".hidden", "x" * 255],
    )  # fmt: skip
    def test_any_other_key_is_fine(self, store: ObjectStore, key: str, tmp_path: Path) -> None:
        assert store.put_if_absent(key, b"1")
        store.put(key, b"22")
        assert (store.get(key), keys(store)) == (b"22", [key])
        assert store.get_range(key, 1, 1) == b"2"
        (tmp_path / "f").write_bytes(b"333")
        store.put_file(key, tmp_path / "f")
        found = store.head(key)
        assert found is not None
        assert found.size_bytes == 3
        store.delete([key])
        assert keys(store) == []

    def test_nothing_is_unfinished_when_all_puts_have_ended(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"x")
        store.put_file("a", tmp_path / "f")
        store.put_if_absent("a", b"")
        assert list(store.unfinished()) == []

    def test_a_local_path_can_be_read_or_there_is_none(self, store: ObjectStore) -> None:
        store.put("folder/a", b"mapped")
        path = store.local_path("folder/a")
        assert path is None or path.read_bytes() == b"mapped"
