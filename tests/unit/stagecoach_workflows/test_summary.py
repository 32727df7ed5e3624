"""The table at the end of a run."""

from __future__ import annotations

import pytest

from stagecoach.manifest import Manifest, ObjectEntry
from stagecoach.paths import manifest_key
from stagecoach.plan_file import Plan
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.plan import make_plan
from stagecoach_workflows.summary import human_bytes, losses, results
from tests.unit.stagecoach_workflows.recipes import small_recipe

TRAINED = {"steps": 650, "tokens": 660_000, "first_loss": 7.6, "last_loss": 0.001, "heldout_last": {"loss": 9.5}}


def finished(store: MemoryStore, task: str, summary: dict[str, object]) -> Plan:
    plan = make_plan(small_recipe(), store, Settings(), "20261125T013000Z-small-ab12")
    entry = plan.task(task)
    manifest = Manifest(
        task=task,
        key=entry.key,
        name=entry.name,
        output_version=1,
        objects={"a": ObjectEntry(path="a", size_bytes=1500, sha256="0" * 64)},
        summary=summary,
        timings={"started_unix_seconds": 100.0, "finished_unix_seconds": 130.5},
    )
    store.put(manifest_key(entry.output), manifest.model_dump_json().encode())
    return plan


def test_a_row_says_what_was_made_how_large_and_how_long() -> None:
    store = MemoryStore("test")
    (row,) = results(store, finished(store, "train", TRAINED))
    assert (row.made, row.size_bytes, row.seconds) == ("650 steps, 660,000 tokens", 1500, 30.5)


def test_a_summary_without_these_values_counts_objects() -> None:
    store = MemoryStore("test")
    (row,) = results(store, finished(store, "pack", {}))
    assert row.made == "1 objects"


def test_the_losses_are_named() -> None:
    store = MemoryStore("test")
    found = losses(results(store, finished(store, "train", TRAINED)))
    assert found == {"first step": 7.6, "last step": 0.001, "held out": 9.5}


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (14_500_000_000, "14.5 GB"), (2 * 10**15, "2000.0 TB")],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text
