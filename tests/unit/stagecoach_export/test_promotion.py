"""Offering an export: what is recorded when it is promoted or refused, and that each happens once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagecoach.outputs import Input, Output, open_input
from stagecoach.paths import numbered, release_prefix
from stagecoach.recipe.export import ExportConfig, GateConfig
from stagecoach.releases import Release, read_evidence, read_releases, serving
from stagecoach.storage.memory import MemoryStore
from stagecoach_export.promotion import offer, sentence

GATE = {"min_common_documents": 2}


def made(store: MemoryStore, tmp_path: Path, key: str, loss: float, *, running: bool = False) -> Input:
    """An export of iteration 8 whose training found this loss on each of three documents of ten targets."""
    documents = [[name, loss * 10, 10] for name in ("a", "b", "c")]
    records: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "attempt": 1},
        {"kind": "evaluation", "step": 0, "documents": [["a", 1e9, 10]]},
        {"kind": "evaluation", "step": 8, "documents": documents},
        {"kind": "answers", "step": 8, "answers": [{"prompt": "p", "answer": "q"}]},
    ]
    trained = Output(store, f"trained/m-{key}/", tmp_path / f"t{key}")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    trained.write_bytes("index.json" if running else "metrics/attempt-0001-000001.jsonl", lines.encode())
    trained.commit(task="train", key=key, name="m", output_version=1)
    exported = Output(store, f"exports/m-{key}/", tmp_path / f"e{key}")
    exported.summary["iteration"] = 8
    exported.commit(task="export", key=key, name="m", output_version=1, inputs={"trained": f"trained/m-{key}/"})
    return open_input(store, f"exports/m-{key}/", tmp_path)


def offered_to(store: MemoryStore, tmp_path: Path, exported: Input, **gate: Any) -> Release:
    config = ExportConfig(release="chat", gate=GateConfig.model_validate({**GATE, **gate}))
    return offer(config, "chat", exported, store, tmp_path)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("promotion")


def test_the_first_is_promoted_a_worse_one_refused_a_better_one_promoted(store: MemoryStore, tmp_path: Path) -> None:
    outcomes = [
        offered_to(store, tmp_path, made(store, tmp_path, key, loss)).outcome
        for key, loss in (("1", 2.0), ("2", 2.5), ("3", 1.9))
    ]
    assert outcomes == ["promoted", "refused", "promoted"]
    history = read_releases(store, "chat")
    assert [release.export for release in history.values()] == ["exports/m-1/", "exports/m-1/", "exports/m-3/"]
    assert history[2].comparison == {
        "num_common_documents": 3,
        "candidate_loss": 2.5,
        "released_loss": 2.0,
        "right_answers": 0,
        "num_tasks": 0,
    }
    assert sentence("chat", history[2]).startswith("not released as chat: held-out loss 2.5000 is above the released")


def test_offering_again_writes_nothing(store: MemoryStore, tmp_path: Path) -> None:
    first, worse = made(store, tmp_path, "1", 2.0), made(store, tmp_path, "2", 2.5)
    for exported in (first, worse, worse, first):
        offered_to(store, tmp_path, exported)
    assert list(read_releases(store, "chat")) == [1, 2]


def test_a_wider_gate_is_asked_again(store: MemoryStore, tmp_path: Path) -> None:
    offered_to(store, tmp_path, made(store, tmp_path, "1", 2.0))
    worse = made(store, tmp_path, "2", 2.5)
    assert offered_to(store, tmp_path, worse).outcome == "refused"
    assert offered_to(store, tmp_path, worse, max_loss_increase=1.0).outcome == "promoted"


def test_the_gate_compares_with_what_another_run_promoted_meanwhile(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first put comes late: the decision is made again, against the winner."""
    offered_to(store, tmp_path, made(store, tmp_path, "1", 2.0))
    good, better = made(store, tmp_path, "2", 1.9), made(store, tmp_path, "3", 1.0)
    real = store.put_if_absent
    late: list[str] = []

    def put_if_absent(key: str, data: bytes, **options: Any) -> bool:
        if key == numbered(release_prefix("chat"), 2) and not late:
            late.append(key)
            offered_to(store, tmp_path, better)
        return real(key, data, **options)

    monkeypatch.setattr(store, "put_if_absent", put_if_absent)
    assert offered_to(store, tmp_path, good).outcome == "refused"
    assert serving(read_releases(store, "chat")) == "exports/m-3/"


def test_what_the_gate_compares_outlives_the_training(store: MemoryStore, tmp_path: Path) -> None:
    offered_to(store, tmp_path, made(store, tmp_path, "1", 2.0))
    store.delete([info.key for info in store.list("trained/")])
    evidence = read_evidence(store, "chat", "exports/m-1/")
    assert evidence is not None
    assert evidence.documents == {"a": (20.0, 10), "b": (20.0, 10), "c": (20.0, 10)}
    assert offered_to(store, tmp_path, made(store, tmp_path, "2", 1.9)).outcome == "promoted"


def test_an_export_of_a_training_that_runs_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    release = offered_to(store, tmp_path, made(store, tmp_path, "1", 2.0, running=True))
    assert (release.outcome, release.export) == ("refused", None)
    assert "its training still runs" in release.reasons[0]
