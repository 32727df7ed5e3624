"""Records that seal themselves: no flipped bit of a manifest, plan or numbered record is believed."""

from __future__ import annotations

import pytest

from stagecoach.errors import CorruptObjectError, StoreUnavailable
from stagecoach.manifest import Manifest, ObjectEntry, commit_manifest, parse_manifest, read_manifest
from stagecoach.paths import manifest_key, plan_key
from stagecoach.plan_file import Plan, TaskPlan, plan_bytes, read_plan
from stagecoach.records import read_numbered, write_numbered
from stagecoach.sealed import seal, unseal
from stagecoach.storage.memory import MemoryStore
from tests.faulty_store import Fault, FaultyStore, flip_bit

RUN = "20261125T013000Z-small"
MANIFEST = Manifest(
    task="train",
    key="00ff",
    name="demo",
    output_version=1,
    objects={"model.json": ObjectEntry(path="native/demo-00ff/try-0/model.json", size_bytes=7, sha256="0" * 64)},
    config={"lr": 0.001, "steps": 8},
    summary={"last": 8, "last_loss": float("nan"), "text": "größer"},
)
PLAN = Plan(
    run_id=RUN,
    recipe={"name": "small"},
    tasks={
        "pack": TaskPlan(
            task="pack",
            kind="pack",
            stage="pack",
            decision="run",
            reason="",
            name="demo",
            key="00ff",
            output="packed/demo-00ff/",
            inputs={},
            config={"pack_tokens": 512},
        )
    },
    created_unix_seconds=1.5,
)


def test_a_sealed_record_is_read_back() -> None:
    values = {"b": [1, 2.5, None], "a": {"ä": True}}
    assert unseal(seal(values), "x") == values


def test_a_record_without_a_digest_is_taken_as_it_is() -> None:
    assert unseal(b'{"a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1]", b"7", b"[" * 100_000])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptObjectError, match="s3://b/k: "):
        unseal(data, "s3://b/k")


def test_no_flipped_bit_of_a_manifest_is_believed() -> None:
    store = MemoryStore("m")
    commit_manifest(store, "native/demo-00ff/", MANIFEST)
    data = store.get(manifest_key("native/demo-00ff/"))
    good = parse_manifest(data, "x").model_dump_json()
    for position in range(8 * len(data)):
        try:
            believed = parse_manifest(flip_bit(position)(data), "x")
        except CorruptObjectError:
            continue
        assert believed.model_dump_json() == good, f"bit {position} was believed"


def test_no_flipped_bit_of_a_plan_is_believed() -> None:
    data = plan_bytes(PLAN)
    for position in range(8 * len(data)):
        store = MemoryStore("m")
        store.put(plan_key(RUN), flip_bit(position)(data))
        try:
            believed = read_plan(store, RUN)
        except CorruptObjectError:
            continue
        assert believed == PLAN, f"bit {position} was believed"


def test_a_damaged_numbered_record_is_named() -> None:
    store = MemoryStore("m")
    write_numbered(store, "releases/x/", {"export": "exports/demo-00ff/"})
    data = store.get("releases/x/0001.json")
    store.put("releases/x/0001.json", data.replace(b"demo-00ff", b"demo-00fg"))
    with pytest.raises(CorruptObjectError, match=r"releases/x/0001\.json: damaged"):
        read_numbered(store, "releases/x/")


def test_damage_on_the_way_is_read_again() -> None:
    inner = MemoryStore("m")
    commit_manifest(inner, "native/demo-00ff/", MANIFEST)
    inner.put(plan_key(RUN), plan_bytes(PLAN))
    store = FaultyStore(inner, [Fault(when=lambda call: call.number in (3, 5), change=flip_bit(301), times=2)])
    assert read_plan(store, RUN) == PLAN
    assert read_manifest(store, "native/demo-00ff/") is not None
    assert read_plan(store, RUN) == PLAN
    assert read_manifest(store, "native/demo-00ff/") is not None


def test_a_store_that_gives_less_than_it_holds_is_asked_again_later() -> None:
    """The record itself is whole: nobody may be told to delete it."""
    inner = MemoryStore("m")
    commit_manifest(inner, "native/demo-00ff/", MANIFEST)
    store = FaultyStore(
        inner, [Fault(when=lambda call: call.operation == "get", change=lambda data: data[:-1], times=9)]
    )
    with pytest.raises(StoreUnavailable, match="the store gives"):
        read_manifest(store, "native/demo-00ff/")
