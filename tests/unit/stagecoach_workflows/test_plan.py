"""The plan of a run: written once, read again, refused when it is another's; and what the workflow reads of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.paths import manifest_key, plan_key
from stagecoach.plan_file import read_plan
from stagecoach.recipe.load import recipe_json
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import HubSource
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.plan import HubLister, decode_recipe, main, plan_run, split_settings, write_outputs
from tests.unit.stagecoach_workflows.recipes import small_recipe

RUN = "20261125T013000Z-small-ab12"


def encoded(recipe: Recipe) -> str:
    return base64.b64encode(recipe_json(recipe).encode()).decode()


def test_a_plan_is_written_once_and_read_again() -> None:
    store = MemoryStore("test")
    first = plan_run(small_recipe(), store, Settings(), RUN)
    written = store.get(plan_key(RUN))
    assert plan_run(small_recipe(), store, Settings(), RUN) == first
    assert store.get(plan_key(RUN)) == written


def test_a_run_id_with_another_recipe_is_refused_and_names_the_field() -> None:
    store = MemoryStore("test")
    plan_run(small_recipe(), store, Settings(), RUN)
    with pytest.raises(ConfigError, match=r"train\.seed: 1234 there, 7 here"):
        plan_run(small_recipe("train.seed=7"), store, Settings(), RUN)


def test_a_run_that_is_given_again_makes_what_was_deleted_meanwhile() -> None:
    """A person was told to delete a damaged output's manifest; the same command then makes it again."""
    store = MemoryStore("test")
    first = plan_run(small_recipe(), store, Settings(), "20261125T010000Z-small")
    for task in first.tasks.values():
        if task.task != "export":
            store.put(manifest_key(task.output), b"{}")
    plan = plan_run(small_recipe(), store, Settings(), RUN)
    assert [task.task for task in plan.tasks.values() if task.decision == "run"] == ["export"]
    store.delete([manifest_key(plan.tasks[name].output) for name in ("pack", "shard")])
    again = plan_run(small_recipe(), store, Settings(), RUN)
    # shard is read by train alone, which is there
    assert [task.task for task in again.tasks.values() if task.decision == "run"] == ["pack", "export"]
    assert read_plan(store, RUN) == plan


def test_a_plan_holds_every_tasks_config_and_inputs() -> None:
    plan = plan_run(small_recipe(), MemoryStore("test"), Settings(), RUN)
    pack = plan.task("pack")
    assert pack.config["pack"]["pack_tokens"] == 512
    assert pack.inputs["data-a"] == plan.task("download-data-a").output
    assert pack.output.startswith("packed/two-sets-")


def test_a_recipe_travels_as_base64() -> None:
    assert decode_recipe(encoded(small_recipe())) == small_recipe()


@pytest.mark.parametrize("text", ["%%%", "", base64.b64encode(b"- 1").decode(), "{{workflow.parameters.recipe}}"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        decode_recipe(text)


def test_a_setting_of_a_submission_changes_the_recipe() -> None:
    assert decode_recipe(encoded(small_recipe()), ["train.seed=7"]).train.seed == 7


@pytest.mark.parametrize("setting", ["train.gpus=1", "train.layout.tensor_parallel=2", "data.sources.0.name=b"])
def test_a_setting_that_needs_another_template_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="for which this workflow template was built"):
        decode_recipe(encoded(small_recipe()), [setting])


def test_settings_stand_apart_by_spaces_and_quotes_keep_them_together() -> None:
    assert split_settings("train.seed=7 'data.sources.0.system=Be kind.'") == [
        "train.seed=7",
        "data.sources.0.system=Be kind.",
    ]
    assert split_settings("") == []


@pytest.mark.parametrize("text", ["train.seed", "'a=1", "a={{workflow.name}}", "$(reboot)", "; rm -rf /"])
def test_hostile_settings_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        split_settings(text)


def test_the_workflow_reads_one_small_file_a_value(tmp_path: Path) -> None:
    plan = plan_run(small_recipe(), MemoryStore("test"), Settings(), RUN)
    write_outputs(plan, tmp_path)
    files = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "plan.json"}
    assert files["run-id"] == RUN
    assert files["train-key"] == plan.task("train").key
    assert files["decision-download-data-a"] == "run"
    assert len(files) == 2 + len(plan.tasks)


def test_the_command_line_makes_the_run_id_from_the_workflow(tmp_path: Path) -> None:
    arguments = ["--store", str(tmp_path), "--recipe-base64", encoded(small_recipe())]
    assert main([*arguments, "--workflow", "stagecoach-small-x7k2p", "--created", "1795570200"]) == 0
    assert list(LocalStore(tmp_path).list_folders("runs/")) == ["20261125T013000Z-stagecoach-small-x7k2p"]


def test_a_bad_recipe_is_one_sentence_and_78(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(tmp_path), "--recipe-base64", encoded(small_recipe()), "--run", RUN]
    assert main([*arguments, "--set", "train.sed=7"]) == 78
    assert capfd.readouterr().err == "--set train.sed: there is no field 'sed'; did you mean 'seed'?\n"
    assert list(LocalStore(tmp_path).list("")) == []


def test_a_directory_is_refused_on_argo_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": []}\n')
    source = {"name": "a", "source": {"kind": "directory", "path": str(tmp_path / "chat.jsonl")}}
    recipe = small_recipe(data={"name": "d", "sources": [source]})
    arguments = ["--store", str(tmp_path / "store"), "--recipe-base64", encoded(recipe), "--run", RUN]
    assert main([*arguments, "--runner", "argo"]) == 78
    assert "data.sources.0.source: a directory" in capfd.readouterr().err
    assert main([*arguments, "--runner", "local"]) == 0


def test_an_offline_hub_is_said_before_anything_is_asked() -> None:
    with pytest.raises(UnavailableError, match="HF_HUB_OFFLINE"):
        HubLister(Settings(hub_offline=True))(HubSource(repo="owner/name"), "model")


def test_a_hub_that_does_not_answer_is_worth_a_retry() -> None:
    lister = HubLister(Settings(hub_endpoint="http://127.0.0.1:9"))
    with pytest.raises(UnavailableError, match="owner/name"):
        lister(HubSource(repo="owner/name"), "model")
