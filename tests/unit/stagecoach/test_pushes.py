"""Pushes to one branch at the same time: each ends, and the records say what the branch holds."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stagecoach.errors import UnavailableError
from stagecoach.paths import manifest_key, numbered
from stagecoach.pushes import is_pushed, push_once
from stagecoach.records import last_number, read_numbered, write_numbered
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.memory import MemoryStore

RECORDS, A, B = "pushes/00ff/", "exports/a-1/", "exports/b-2/"
PUSH_SECONDS = 0.2


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    for export in (A, B):
        made.put(manifest_key(export), export.encode())
    return made


class Branch:
    """A branch that shows what was pushed to it last; every push takes as long as another."""

    def __init__(self, meet: int) -> None:
        """The first ``meet`` pushes are under way at the same time, and end a little after each other."""
        self.pushed: list[str] = []
        self._meeting = threading.Barrier(meet)
        self._begun = 0
        self._lock = threading.Lock()

    def push(self, export: str) -> dict[str, Any]:
        with self._lock:
            at = self._begun
            self._begun += 1
        if at < self._meeting.parties:
            self._meeting.wait(60)
            time.sleep(at * PUSH_SECONDS / 3)
        time.sleep(PUSH_SECONDS)
        with self._lock:
            self.pushed.append(export)
        return {"commit": str(len(self.pushed))}


@pytest.mark.parametrize("number", [2, 3])
def test_of_one_export_pushed_twice_at_once_each_push_counts(store: MemoryStore, number: int) -> None:
    branch = Branch(meet=number)
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(lambda _: push_once(store, RECORDS, A, lambda: branch.push(A)), range(number)))
    assert branch.pushed == [A] * number
    assert is_pushed(store, RECORDS, A)


def test_of_two_exports_pushed_at_once_both_are_pushed_and_the_last_one_is_recorded(store: MemoryStore) -> None:
    branch = Branch(meet=2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda export: push_once(store, RECORDS, export, lambda: branch.push(export)), (A, B)))
    assert {*branch.pushed} == {A, B} and len(branch.pushed) <= 4
    last, first = branch.pushed[-1], {A: B, B: A}[branch.pushed[-1]]
    assert is_pushed(store, RECORDS, last) and not is_pushed(store, RECORDS, first)


def test_a_branch_that_another_export_got_meanwhile_is_pushed_to_again_at_once(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the newest record names what the branch no longer holds."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits for a push that is done"))
    branch: list[str] = []

    def push() -> dict[str, Any]:
        if not branch:
            push_once(store, RECORDS, B, lambda: push_to_branch(B))
        return push_to_branch(A)

    def push_to_branch(export: str) -> dict[str, Any]:
        branch.append(export)
        return {}

    push_once(store, RECORDS, A, push)
    assert branch == [B, A, A]
    assert is_pushed(store, RECORDS, A)


def test_a_record_that_comes_while_the_last_one_is_written_is_seen(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export's push began after this one had looked: what the branch will hold is not known."""
    real, number_of_pushes = store.put_if_absent, 0

    def put_if_absent(key: str, data: bytes, *, content_type: str) -> bool:
        if key == numbered(RECORDS, 2) and last_number(store, RECORDS) == 1:
            real(key, b'{"state": "started", "export": "exports/b-2/", "manifest_sha256": "00"}')
        return real(key, data, content_type=content_type)

    def push() -> dict[str, Any]:
        nonlocal number_of_pushes
        number_of_pushes += 1
        return {}

    monkeypatch.setattr(store, "put_if_absent", put_if_absent)
    push_once(store, RECORDS, A, push)
    assert number_of_pushes == 2
    assert [record["state"] for record in read_numbered(store, RECORDS).values()] == [
        "started",
        "started",
        "started",
        "pushed",
    ]


def test_the_pauses_grow_with_the_push_and_end_in_one_sentence(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    def others_push(to: ObjectStore) -> dict[str, Any]:
        write_numbered(to, RECORDS, {"state": "started", "export": B, "manifest_sha256": "00"})
        return {}

    with pytest.raises(UnavailableError, match="exports/a-1/: other exports are pushed to the same branch"):
        push_once(store, RECORDS, A, lambda: others_push(store))
    assert len(pauses) == 4
    for at, seconds in enumerate(pauses, start=1):
        assert 10 * at <= seconds <= 20 * at
