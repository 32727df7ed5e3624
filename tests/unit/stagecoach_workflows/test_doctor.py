"""The doctor tries every verb of a store, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import shared_memory_store
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.doctor import examine_hub, examine_store

ATTEMPTS = ["put", "get", "conditional put", "upload in parts", "list", "delete"]


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_a_good_store_passes_every_attempt(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path) if kind == "directory" else "memory://doctor"
    findings = list(examine_store(url, Settings()))
    assert [(finding.what, finding.ok) for finding in findings] == [(f"store: {what}", True) for what in ATTEMPTS]
    store = LocalStore(tmp_path) if kind == "directory" else shared_memory_store("doctor")
    assert list(store.list("")) == []


def test_a_file_in_the_place_of_a_store_is_said_before_any_attempt(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    findings = list(examine_store(str(tmp_path / "store"), Settings()))
    assert [(finding.what, finding.ok) for finding in findings] == [("store", False)]


def test_a_store_that_cannot_be_written_fails_at_put(tmp_path: Path) -> None:
    (tmp_path / "doctor").write_text("in the way of the folder that the attempts go to")
    findings = list(examine_store(str(tmp_path), Settings()))
    assert [(finding.what, finding.ok) for finding in findings] == [("store: put", False)]


def test_a_missing_hub_is_said_but_fails_nothing() -> None:
    finding = examine_hub(Settings(hub_endpoint="http://127.0.0.1:9"))
    assert (finding.ok, finding.needed) == (False, False)


def test_the_command_ends_with_78_where_something_needed_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert app(["doctor", "--store", str(tmp_path)]) == 0
    assert app(["doctor", "--store", "ftp://x"]) == 78
    assert "FAILED  store" in capfd.readouterr().out
    assert app(["doctor", "--json", "--store", "ftp://x"]) == 78
    assert [(row["what"], row["ok"]) for row in json.loads(capfd.readouterr().out)] == [
        ("store", False),
        ("Hub", False),
    ]
