"""The history of a release: the newest record counts, nobody overwrites anybody, nothing half-made is trusted."""

from __future__ import annotations

import pytest

from stagecoach.errors import CorruptObjectError, MissingInputError
from stagecoach.paths import manifest_key
from stagecoach.releases import (
    Evidence,
    Release,
    append_release,
    check_export,
    offered,
    read_evidence,
    read_releases,
    release_names,
    released_export,
    serving,
    write_evidence,
)
from stagecoach.storage.memory import MemoryStore

A, B = "exports/m-a/", "exports/m-b/"


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore("releases")
    for export in (A, B):
        store.put(manifest_key(export), export.encode())
    return store


def promote(store: MemoryStore, export: str, *, name: str = "chat") -> bool:
    digest = check_export(store, export, None, "test")
    release = Release(outcome="promoted", candidate=export, export=export, manifest_sha256=digest)
    return append_release(store, name, read_releases(store, name), release)


def test_the_newest_record_says_what_serves(store: MemoryStore) -> None:
    promote(store, A)
    promote(store, B)
    history = read_releases(store, "chat")
    append_release(store, "chat", history, Release(outcome="refused", candidate="exports/m-c/", export=B))
    assert serving(read_releases(store, "chat")) == B
    assert [release.outcome for release in read_releases(store, "chat").values()] == ["promoted", "promoted", "refused"]
    assert release_names(store) == ["chat"]


def test_who_decided_on_an_older_history_writes_nothing(store: MemoryStore) -> None:
    history = read_releases(store, "chat")
    assert promote(store, A)
    assert not append_release(store, "chat", history, Release(outcome="promoted", candidate=B, export=B))
    assert serving(read_releases(store, "chat")) == A


def test_a_release_without_any_promotion_is_a_missing_input(store: MemoryStore) -> None:
    promote(store, A, name="other")
    with pytest.raises(MissingInputError, match=r"nothing has been promoted .*\(releases there: other\)"):
        released_export(store, "chat")


def test_an_export_that_is_gone_or_was_made_again_is_not_handed_out(store: MemoryStore) -> None:
    promote(store, A)
    assert released_export(store, "chat") == A
    store.put(manifest_key(A), b"other")
    with pytest.raises(CorruptObjectError, match="made again after it was released"):
        released_export(store, "chat")
    store.delete([manifest_key(A)])
    with pytest.raises(MissingInputError, match="is gone; roll back"):
        released_export(store, "chat")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"outcome": "promoted"}', b'{"export": "exports/m-a/"}'])
def test_a_damaged_record_is_named_and_not_passed_over(store: MemoryStore, data: bytes) -> None:
    promote(store, A)
    store.put("releases/chat/0002.json", data)
    with pytest.raises(CorruptObjectError, match=r"releases/chat/0002\.json: "):
        read_releases(store, "chat")


def test_a_flipped_bit_in_a_pointer_is_found(store: MemoryStore) -> None:
    promote(store, A)
    store.put("releases/chat/0001.json", store.get("releases/chat/0001.json").replace(A.encode(), B.encode()))
    with pytest.raises(CorruptObjectError, match="its fields are not those that were written"):
        released_export(store, "chat")


def test_a_refused_export_is_offered_again_to_another_gate_a_promoted_one_never() -> None:
    history = {
        1: Release(outcome="promoted", candidate=A, export=A, gate={"max_loss_increase": 0.0}),
        2: Release(outcome="refused", candidate=B, export=A, gate={"max_loss_increase": 0.0}),
        3: Release(outcome="rolled back", candidate=A, export=None),
    }
    assert offered(history, A, {"max_loss_increase": 1.0}) == (1, history[1])
    assert offered(history, B, {"max_loss_increase": 0.0}) == (2, history[2])
    assert offered(history, B, {"max_loss_increase": 1.0}) is None


def test_evidence_is_written_once_and_keeps_what_json_does_not_know(store: MemoryStore) -> None:
    assert read_evidence(store, "chat", A) is None
    write_evidence(store, "chat", A, Evidence(iteration=3, documents={"x": (float("inf"), 2)}))
    write_evidence(store, "chat", A, Evidence(iteration=4, documents={}))
    assert read_evidence(store, "chat", A) == Evidence(iteration=3, documents={"x": (float("inf"), 2)})
    assert read_releases(store, "chat") == {}


def test_a_name_that_could_leave_the_folder_is_refused(store: MemoryStore) -> None:
    with pytest.raises(ValueError, match="release name: expected"):
        read_releases(store, "../runs")
