"""What a directory store promises beside the common class: durable, closed to the outside, clear about its disk."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, ObjectMissing, StoreDenied, StoreUnavailable
from stagecoach.storage.local import TEMPORARY, LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def fail_with(number: int) -> object:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def create(store: LocalStore, key: str, data: bytes) -> None:
    with store.create(key) as write:
        write(data)


def test_opening_makes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert list(store.list("")) == []
    assert store.head("a") is None
    assert list(store.unfinished()) == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("place", ["/proc/stagecoach", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = LocalStore(tmp_path / place)
    for put in (
        lambda: store.put("a", b""),
        lambda: store.put_if_absent("a", b""),
        lambda: store.put_file("a", tmp_path / "file"),
        lambda: create(store, "a", b"x"),
    ):
        with pytest.raises(ConfigError, match=f"store: the directory {store.root} cannot be made"):
            put()


def test_objects_are_plain_files(store: LocalStore) -> None:
    store.put("runs/x/plan.json", b"{}")
    assert (store.root / "runs/x/plan.json").read_bytes() == b"{}"
    assert store.local_path("runs/x/plan.json") == store.root / "runs/x/plan.json"
    assert stat.S_IMODE((store.root / "runs/x/plan.json").stat().st_mode) & 0o111 == 0


def test_a_local_path_must_exist(store: LocalStore) -> None:
    with pytest.raises(ObjectMissing):
        store.local_path("a")


def test_every_put_syncs_the_file_before_its_name_and_the_folder_after(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A crash of the machine between the two must not leave a name without bytes."""
    store.put("warm", b"")
    events: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)

    def note_name(real: Callable[..., None]) -> Callable[..., None]:
        def act(*arguments: str, **options: bool) -> None:
            events.append("name")
            real(*arguments, **options)

        return act

    monkeypatch.setattr(os, "replace", note_name(os.replace))
    monkeypatch.setattr(os, "link", note_name(os.link))
    (tmp_path / "f").write_bytes(b"x")
    for put in (
        lambda: store.put("a", b"x"),
        lambda: store.put_if_absent("b", b"x"),
        lambda: store.put_file("c", tmp_path / "f"),
        lambda: create(store, "d", b"x"),
    ):
        events.clear()
        put()
        assert events == ["file", "name", "folder"]
    events.clear()
    store.put("new/deep/a", b"x")
    assert events == ["file", "folder", "folder", "name", "folder"]


def test_what_an_interrupted_put_leaves_is_no_object_but_is_found(store: LocalStore) -> None:
    store.put("a", b"1")
    (store.root / TEMPORARY / "0123456789abcdef").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a"]
    assert list(store.list_folders("")) == []
    (left,) = store.unfinished()
    assert left.upload_id == "0123456789abcdef"
    store.discard(left)
    store.discard(left)
    assert list(store.unfinished()) == []


def test_the_folder_of_temporary_files_takes_no_objects(store: LocalStore) -> None:
    with pytest.raises(ConfigError, match="the store's own"):
        store.put(f"{TEMPORARY}/x", b"")


def test_no_key_leads_through_a_symbolic_link(store: LocalStore, tmp_path: Path) -> None:
    store.put("inside", b"1")
    (tmp_path / "secret").write_bytes(b"secret")
    (store.root / "file").symlink_to(tmp_path / "secret")
    (store.root / "folder").symlink_to(tmp_path)
    for key in ("file", "folder/secret"):
        for act in (store.get, store.head, store.local_path, lambda k: store.put(k, b"x"), lambda k: store.delete([k])):
            with pytest.raises(StoreDenied, match="symbolic link"):
                act(key)
    assert [info.key for info in store.list("")] == ["inside"]
    assert list(store.list_folders("")) == []
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_foreign_file_with_an_impossible_name_is_no_object(store: LocalStore) -> None:
    store.put("a", b"1")
    (store.root / "new\nline").write_bytes(b"")
    (store.root / os.fsdecode(b"\xff")).write_bytes(b"")
    assert [info.key for info in store.list("")] == ["a"]


@pytest.mark.parametrize("first_second", [("a", "a/b"), ("a/b", "a")])
def test_an_object_and_a_folder_cannot_have_one_name(store: LocalStore, first_second: tuple[str, str]) -> None:
    first, second = first_second
    store.put(first, b"1")
    for put in (store.put, store.put_if_absent):
        with pytest.raises(ConfigError, match="rename one"):
            put(second, b"2")
    assert store.head(second) is None
    assert [info.key for info in store.list("")] == [first]


def test_an_empty_folder_does_not_exist(store: LocalStore) -> None:
    store.put("runs/a/x", b"1")
    (store.root / "runs/b/c").mkdir(parents=True)
    assert list(store.list_folders("runs/")) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    store.put("old", b"1")
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(os, "write", fail_with(number))
    monkeypatch.setattr(os, "copy_file_range", fail_with(number))
    for put in (
        lambda: store.put("a", b"x"),
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.put_file("a", tmp_path / "f"),
        lambda: create(store, "a", b"x"),
    ):
        with pytest.raises(StoreUnavailable, match=re.escape(f"{store.url}/a: no space left on its disk; free some")):
            put()
    assert [info.key for info in store.list("")] == ["old"]
    assert list(store.unfinished()) == []


def test_a_read_only_directory_is_denied(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", fail_with(errno.EROFS))
    with pytest.raises(StoreDenied, match="Read-only file system"):
        store.put("a", b"x")


def test_a_failing_disk_is_unavailable(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"x")
    monkeypatch.setattr(os, "open", fail_with(errno.EIO))
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.get("a")


def test_a_file_system_without_hard_links_is_named(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    with pytest.raises(ConfigError, match="needs a file system with hard links"):
        store.put_if_absent("a", b"x")


def test_a_link_that_was_made_but_answered_exists_is_ours(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request whose answer was lost, and the second one finds the link of the first."""
    real_link = os.link

    def link_and_say_exists(source: str, target: str, **options: bool) -> None:
        real_link(source, target, **options)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_and_say_exists)
    assert store.put_if_absent("a", b"x")


def test_a_folder_that_vanishes_under_a_put_is_made_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete elsewhere removes emptied folders; a put must not fail for it."""
    real_replace = os.replace
    removed: list[str] = []

    def replace(source: str, target: str) -> None:
        if not removed:
            removed.append(os.path.dirname(target))
            os.rmdir(removed[0])
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    store.put("d/a", b"x")
    assert store.get("d/a") == b"x"


def test_a_copy_without_help_of_the_kernel_is_the_same(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"0123456789" * 1000)
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    store.put_file("a", tmp_path / "f")
    assert store.get("a") == b"0123456789" * 1000
