"""Keys and decisions: what runs, what does not, and why."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from stagecoach.paths import manifest_key
from stagecoach.pushes import push_once, push_records
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import HubSource
from stagecoach.releases import Release, append_release
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing
from stagecoach.storage.base import ObjectInfo
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.decisions import Candidate, candidates, decide, task_configs
from tests.unit.stagecoach_workflows.recipes import small_recipe


def no_hub(source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
    """A recipe without Hub sources never asks."""
    raise AssertionError(f"asked the Hub for {source.repo}")


def planned(recipe: Recipe) -> dict[str, Candidate]:
    return candidates(recipe, task_configs(recipe, Settings(), no_hub))


def finish(store: MemoryStore, tasks: dict[str, Candidate], *names: str) -> None:
    for name in names:
        store.put(manifest_key(tasks[name].output), b"{}")


def running(store: MemoryStore, recipe: Recipe) -> list[str]:
    return [task for task, plan in decide(store, planned(recipe), recipe, Settings()).items() if plan.decision == "run"]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("test")


def test_everything_runs_in_an_empty_store(store: MemoryStore) -> None:
    recipe = small_recipe()
    assert running(store, recipe) == list(planned(recipe))


def test_nothing_runs_once_the_export_is_there(store: MemoryStore) -> None:
    """Even if what it was made from has been deleted."""
    recipe = small_recipe()
    finish(store, planned(recipe), "export")
    assert running(store, recipe) == []


def test_a_finished_run_costs_one_question(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe()
    tasks = planned(recipe)
    finish(store, tasks, "export")
    asked: list[str] = []
    real = store.head

    def head(key: str) -> ObjectInfo | None:
        asked.append(key)
        return real(key)

    monkeypatch.setattr(store, "head", head)
    decide(store, tasks, recipe, Settings())
    assert asked == [manifest_key(tasks["export"].output)]


def test_a_missing_intermediate_that_nothing_needs_is_not_made_again(store: MemoryStore) -> None:
    recipe = small_recipe()
    finish(store, planned(recipe), "train", "convert", "download-tokenizer", "pack")
    assert running(store, recipe) == ["export"]


def test_what_a_missing_task_needs_is_made_again(store: MemoryStore) -> None:
    """Native is gone, the export needs it, and the source weights are gone as well."""
    recipe = small_recipe()
    finish(store, planned(recipe), "train", "download-tokenizer", "pack")
    assert running(store, recipe) == ["download-model", "convert", "export"]


def test_a_changed_pack_field_runs_pack_train_and_export(store: MemoryStore) -> None:
    finish(store, planned(small_recipe()), *planned(small_recipe()))
    assert running(store, small_recipe("pack.pack_tokens=256")) == ["pack", "train", "export"]


def test_another_layout_is_the_same_training(store: MemoryStore) -> None:
    before, after = planned(small_recipe()), planned(small_recipe("train.layout.tensor_parallel=2"))
    assert before["train"].key == after["train"].key
    assert before["shard"].key != after["shard"].key


def test_the_reason_names_who_needs_it(store: MemoryStore) -> None:
    recipe = small_recipe()
    plans = decide(store, planned(recipe), recipe, Settings())
    assert plans["export"].reason == "its output is missing"
    assert plans["shard"].reason == "its output is missing and train needs it"


def test_the_best_checkpoint_depends_on_when_it_is_evaluated() -> None:
    def key(*overrides: str) -> str:
        return planned(small_recipe(*overrides))["export"].key

    every = "train.evaluate_every_steps=2"
    assert key("export.iteration=best") != key("export.iteration=best", every)
    assert key() == key(every)


def test_a_wanted_push_runs_the_export_that_is_there(store: MemoryStore) -> None:
    recipe = small_recipe(export={"push": {"repo": "team/model"}})
    tasks = planned(recipe)
    finish(store, tasks, *tasks)
    assert running(store, recipe) == ["export"]
    assert recipe.export.push is not None
    records, export = push_records(recipe.export.push, Settings()), tasks["export"].output
    push_once(store, records, export, dict)
    assert running(store, recipe) == []
    store.put(manifest_key("exports/another/"), b"{}")
    push_once(store, records, "exports/another/", dict)
    assert running(store, recipe) == ["export"]


def test_a_wanted_release_runs_the_export_that_is_there(store: MemoryStore) -> None:
    recipe = small_recipe(export={"release": "assistant"})
    tasks = planned(recipe)
    finish(store, tasks, *tasks)
    assert running(store, recipe) == ["export"]
    gate, export = recipe.export.gate.model_dump(mode="json"), tasks["export"].output
    append_release(store, "assistant", {}, Release(outcome="refused", candidate=export, export=None, gate=gate))
    assert running(store, recipe) == []
    assert running(store, small_recipe("export.gate.max_loss_increase=1", export={"release": "assistant"})) == [
        "export"
    ]


def test_outputs_are_named_after_model_data_and_source() -> None:
    names: dict[str, Any] = {task: candidate.name for task, candidate in planned(small_recipe()).items()}
    assert names["convert"] == names["train"] == names["export"] == "small-model"
    assert names["pack"] == "two-sets"
    assert names["download-data-a"] == "a"


def test_no_two_data_sources_share_an_input_name() -> None:
    two = {"name": "two", "sources": [{"name": name, "source": {"kind": "embedded"}} for name in ("a", "b")]}
    tasks = planned(small_recipe(data=two))
    assert set(tasks["pack"].inputs) == {"tokenizer", "data-a", "data-b"}
