"""``stagecoach verify``: what it reads, what it names, and what it says of what it cannot check."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stagecoach.outputs import Output
from stagecoach.paths import checkpoint_prefix, finished_prefix, manifest_key, plan_key
from stagecoach.records import read_sealed, write_numbered, write_record
from stagecoach.releases import Evidence, Release, append_release, check_export, parse_release, write_evidence
from stagecoach.sealed import seal
from stagecoach.storage.base import ObjectInfo, ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.bucket import verify
from stagecoach_workflows.bucket.verify import verify_folders, verify_store
from stagecoach_workflows.cli.main import app

RUN, TRAINED, EXPORT = "20261125T000000Z-a", "trained/m-1/", "exports/m-2/"
CHECKPOINT = checkpoint_prefix(TRAINED, 8, 1)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A run with every kind of record, a training with a checkpoint, a released export, and an unfinished packing."""
    store = LocalStore(tmp_path / "store")
    for prefix, task in ((TRAINED, "train"), (CHECKPOINT, "train"), (EXPORT, "export")):
        output = Output(store, prefix, tmp_path / "scratch")
        output.write_bytes("object", prefix.encode())
        output.commit(task=task, key="00ff", name="m", output_version=1)
    store.put("packed/m-3/try-0/object", b"half")
    store.put(plan_key(RUN), seal({"run_id": RUN}))
    write_record(store, RUN, "pack", {"state": "started"})
    write_numbered(store, finished_prefix(RUN), {"state": "succeeded"})
    write_numbered(store, f"{TRAINED}attempts/", {"attempt": 1})
    write_numbered(store, "pushes/00ff/", {"commit": "c0ffee"})
    write_evidence(store, "chat", EXPORT, Evidence(iteration=8, documents={}))
    digest = check_export(store, EXPORT, None, "test")
    append_release(
        store, "chat", {}, Release(outcome="promoted", candidate=EXPORT, export=EXPORT, manifest_sha256=digest)
    )
    return store


def says(store: LocalStore, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = app(["verify", *arguments, "--store", str(store.root)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_it_counts_what_it_read_and_what_it_could_not_check(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says(store, capsys) == (
        0,
        (
            "1 without a manifest, not checked: packed/m-3/\n"
            "2 outputs, 1 checkpoints and 7 records read, 0 objects differ\n"
        ),
    )


@pytest.mark.parametrize(
    "key",
    [
        f"runs/{RUN}/plan.json",
        f"runs/{RUN}/pack/0001.json",
        f"runs/{RUN}/finished/0001.json",
        f"{TRAINED}attempts/0001.json",
        "pushes/00ff/0001.json",
        "releases/chat/0001.json",
        "releases/chat/heldout/m-2.json",
        f"{TRAINED}manifest.json",
        f"{CHECKPOINT}manifest.json",
        f"{EXPORT}manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["a bit", "no JSON"])
def test_a_damaged_record_is_named(
    store: LocalStore, capsys: pytest.CaptureFixture[str], key: str, damage: str
) -> None:
    data = json.loads(store.get(key))
    changed = {**data, "digest": "0" * 64}
    store.put(key, json.dumps(changed).encode() if damage == "a bit" else b"bad")
    code, text = says(store, capsys)
    assert code == 79
    assert f"{key}: " in text


@pytest.mark.parametrize("prefix", [TRAINED, CHECKPOINT, EXPORT])
def test_a_damaged_object_is_named_those_of_checkpoints_too(
    store: LocalStore, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    (info,) = store.list(f"{prefix}try-")
    store.put(info.key, b"x" * info.size_bytes)
    code, text = says(store, capsys)
    assert code == 79
    assert f"{prefix}object: expected sha256" in text
    assert says(store, capsys, TRAINED)[0] == (0 if prefix == EXPORT else 79)


@pytest.mark.parametrize("names", [(), (TRAINED, EXPORT)])
def test_every_object_is_asked_for_once(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
) -> None:
    """Manifests and records of releases, too, which cost a request each on S3."""
    asked: Counter[str] = Counter()
    heads: Counter[str] = Counter()
    real_get, real_head = store.get, store.head

    def get(key: str) -> bytes:
        asked[key] += 1
        return real_get(key)

    def head(key: str) -> ObjectInfo | None:
        heads[key] += 1
        return real_head(key)

    monkeypatch.setattr(store, "get", get)
    monkeypatch.setattr(store, "head", head)
    found = verify_folders(store, names) if names else verify_store(store)
    manifests = {f"{TRAINED}manifest.json", f"{CHECKPOINT}manifest.json", f"{EXPORT}manifest.json"}
    assert (found.num_outputs, found.num_checkpoints, found.problems) == (2, 1, [])
    assert asked == dict.fromkeys(asked, 1)
    assert manifests < {*asked} if not names else manifests == {*asked}
    assert [key for key in heads if not key.startswith((f"{TRAINED}try-", f"{CHECKPOINT}try-", f"{EXPORT}try-"))] == []


@pytest.mark.parametrize("old", ["stays", "is deleted"])
def test_a_run_that_promotes_meanwhile_is_no_problem(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str
) -> None:
    """Manifests are read first and records last, so a release may be newer than the manifest that was found."""
    fresh, real_list = "exports/m-9/", store.list
    half = Output(store, fresh, tmp_path / "fresh")
    half.write_bytes("object", b"new")

    def promote(export: str, number: int) -> None:
        release = Release(
            outcome="promoted",
            candidate=export,
            export=export,
            manifest_sha256=check_export(store, export, None, "test"),
        )
        assert append_release(store, "chat", dict.fromkeys(range(1, number), release), release)

    def listed(prefix: str) -> Iterator[ObjectInfo]:
        if prefix == "runs/":  # every manifest has been read, no record has
            half.commit(task="export", key="00ff", name="m", output_version=1)
            promote(fresh, 2)
        return real_list(prefix)

    def parsed(values: Mapping[str, Any], address: str) -> Release:
        if old == "is deleted" and store.head("releases/chat/0003.json") is None:  # the newest record has been read
            promote(EXPORT, 3)
            store.delete([manifest_key(fresh)])
        return parse_release(values, address)

    monkeypatch.setattr(store, "list", listed)
    monkeypatch.setattr(verify, "parse_release", parsed)
    assert verify_store(store).problems == []


def test_a_checkpoint_that_its_training_deletes_meanwhile_is_no_problem(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_head = store.head

    def head(key: str) -> ObjectInfo | None:
        if key.startswith(f"{CHECKPOINT}try-"):  # its manifest has been read
            store.delete([manifest_key(CHECKPOINT)])
            store.delete([info.key for info in store.list(CHECKPOINT)])
        return real_head(key)

    monkeypatch.setattr(store, "head", head)
    assert verify_store(store).problems == []
    assert store.head(manifest_key(CHECKPOINT)) is None


def test_of_the_records_only_the_newest_of_each_release_stay_in_memory(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Values(dict[str, Any]):
        """A record that can be watched."""

    read: dict[str, weakref.ref[Values]] = {}
    kept: list[list[str]] = []

    def watched(from_store: ObjectStore, key: str) -> dict[str, Any]:
        values = Values(read_sealed(from_store, key))
        read[key] = weakref.ref(values)
        return values

    def parsed(values: Mapping[str, Any], address: str) -> Release:
        kept.append([key for key, values in read.items() if values() is not None])
        return parse_release(values, address)

    digest = check_export(store, EXPORT, None, "test")
    again = Release(outcome="promoted", candidate=EXPORT, export=EXPORT, manifest_sha256=digest)
    append_release(store, "chat", {1: again}, again)
    for _ in range(40):
        write_record(store, RUN, "pack", {"state": "started"})
    monkeypatch.setattr(verify, "read_sealed", watched)
    monkeypatch.setattr(verify, "parse_release", parsed)
    assert verify_store(store).num_records == len(read) == 48
    assert kept == [["releases/chat/0002.json"]]


def test_an_old_record_that_is_damaged_hides_no_export_that_is_gone(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {1: Release(outcome="refused", candidate=EXPORT, export=None)}
    append_release(store, "chat", first, Release(outcome="promoted", candidate=EXPORT, export=EXPORT))
    store.put("releases/chat/0001.json", b"bad")
    store.delete([manifest_key(EXPORT)])
    code, text = says(store, capsys)
    assert code == 79
    assert "releases/chat/0001.json: " in text
    assert "releases/chat/0002.json: what it serves" in text


def test_a_record_that_is_none_of_a_release_is_named(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.put("releases/chat/0002.json", seal({"outcome": "perhaps"}))
    code, text = says(store, capsys)
    assert code == 79
    assert "releases/chat/0002.json: not a release record" in text


def test_json_holds_problems_alone_and_what_was_not_checked_is_said_beside_it(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app(["verify", "--store", store.url, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == []
    assert output.err == "1 without a manifest, not checked: packed/m-3/\n"


def test_a_release_whose_export_is_gone_or_another_is_named(
    store: LocalStore, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store.delete([manifest_key(EXPORT)])
    code, text = says(store, capsys)
    assert code == 79
    assert "releases/chat/0001.json: what it serves" in text
    assert f"2 without a manifest, not checked: packed/m-3/, {EXPORT}" in text
    other = Output(store, EXPORT, tmp_path / "other")
    other.commit(task="export", key="00ff", name="m", output_version=1)
    assert "it was made again" in says(store, capsys)[1]


@pytest.mark.parametrize("names", [("exports/nope",), ("nosuch",), (EXPORT, "exports/nope/"), ("packed/m-3",)])
def test_a_named_output_that_is_not_finished_is_a_missing_input(
    store: LocalStore, capsys: pytest.CaptureFixture[str], names: Sequence[str]
) -> None:
    code, text = says(store, capsys, *names)
    assert code == 66
    assert f"{names[-1].rstrip('/')}/: no finished output here" in text


@pytest.mark.parametrize("command", ["verify", "lineage"])
def test_the_address_that_run_prints_names_an_output(
    store: LocalStore, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for name in (EXPORT, EXPORT.rstrip("/"), f"{store.url}/{EXPORT}", f"{store.url}/{EXPORT}".rstrip("/")):
        assert app([command, name, "--store", str(store.root)]) == 0
    assert app([command, f"file:///elsewhere/{EXPORT}", "--store", str(store.root)]) == 78
    assert "give its --store" in capsys.readouterr().err
