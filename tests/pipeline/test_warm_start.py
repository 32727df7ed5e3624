"""Training on from a release: with new data a stage chain of its own, with the old data nothing at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.manifest import read_manifest
from stagecoach.releases import read_releases, released_export
from tests.micro_run import MicroWork

pytestmark = pytest.mark.xdist_group("micro")  # takes a copy of the run that they share

RELEASED = ("--set", "export.release=chat", "--set", "export.gate.min_common_documents=2")
FROM_RELEASE = ("--set", "model={name: micro-mistral, source: {kind: release, name: chat}}")
OTHER_DATA = ("--set", "data.sources.0.rows=60")


def started(work: MicroWork, number: int, *arguments: str) -> list[str]:
    """Run and return the tasks that the plan starts."""
    run_id = f"20261126T0{number}0000Z-micro-warm"
    result = work.run(*RELEASED, *arguments, run_id=run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    return [task.task for task in work.plan(run_id).tasks.values() if task.decision == "run"]


def test_a_release_is_trained_on_once_for_each_change_of_data(micro: MicroWork, tmp_path: Path) -> None:
    work = micro.copy_without(tmp_path, [])
    assert started(work, 1) == ["export"]  # it is built, and now offered
    first = released_export(work.store, "chat")

    # The release was made by this recipe from the same data.
    assert started(work, 2, *FROM_RELEASE) == []
    assert list(read_releases(work.store, "chat")) == [1]

    assert "train" in started(work, 3, *FROM_RELEASE, *OTHER_DATA)
    second = released_export(work.store, "chat")
    assert second != first
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert digest(work, second, name) == digest(work, first, name)  # nothing wears off from night to night

    assert started(work, 4, *FROM_RELEASE, *OTHER_DATA) == []
    assert released_export(work.store, "chat") == second


def digest(work: MicroWork, export: str, name: str) -> str:
    manifest = read_manifest(work.store, export)
    assert manifest is not None
    return manifest.objects[name].sha256
