"""The contract around every stage: the same flags, done twice is done once, and an exit code for every end."""

import dataclasses
import errno
import importlib
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stagecoach import contract
from stagecoach.errors import ConfigError, CorruptObjectError, InterruptedWithProgress, ObjectMissing, StoreUnavailable
from stagecoach.keys import content_key
from stagecoach.outputs import Input, Output, open_input
from stagecoach.paths import manifest_key, plan_key
from stagecoach.plan_file import Plan, TaskPlan
from stagecoach.recipe.base import Section
from stagecoach.recipe.shard import ShardConfig
from stagecoach.records import read_numbered
from stagecoach.stages import STAGES, TASKS
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore

RUN = "20261125T013000Z-a"
NATIVE, SHARDS = "native/m-00aa/", "shards/m-00ff/"
Run = Callable[[Section, Mapping[str, Input], Output, ObjectStore], None]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """A store with a finished native output and a plan that wants shards."""
    monkeypatch.setenv("STAGECOACH_SCRATCH", str(tmp_path / "scratch"))
    store = LocalStore(tmp_path / "store")
    native = Output(store, NATIVE, tmp_path / "native")
    native.write_bytes("weights", b"0123")
    native.commit(task="convert", key="00aa", name="m", output_version=1)
    task = TaskPlan(
        task="shard",
        kind="shard",
        stage="shard",
        decision="run",
        reason="missing",
        name="m",
        key="00ff",
        output=SHARDS,
        inputs={"native": NATIVE},
        config=ShardConfig(tensor_parallel=1, pipeline_parallel=1).model_dump(mode="json"),
    )
    plan = Plan(run_id=RUN, recipe={}, tasks={"shard": task}, created_unix_seconds=0.0)
    store.put_if_absent(plan_key(RUN), plan.model_dump_json().encode())
    return store


def _use(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    module = types.ModuleType("stagecoach_shard.run")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stagecoach_shard.run", module)


def _copy(config: Section, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
    output.write_bytes("rank", inputs["native"].read_bytes("weights"))
    output.summary["ranks"] = 1


def _main(store: LocalStore, *more: str) -> int:
    return contract.stage_main("shard", ["--store", store.url, "--run", RUN, *more])


def _states(store: LocalStore) -> list[str]:
    return [record["state"] for record in read_numbered(store, f"runs/{RUN}/shard/").values()]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_flags(stage: str) -> None:
    options = {option for action in contract._parser(stage)._actions for option in action.option_strings}
    assert options == {"-h", "--help", "--store", "--run", "--config", "--task", "--check"}


def test_a_stage_reads_its_inputs_and_commits_its_output(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, _copy)
    assert _main(store) == 0
    shards = open_input(store, SHARDS, tmp_path)
    assert (shards.read_bytes("rank"), shards.summary, shards.manifest.inputs) == (
        b"0123",
        {"ranks": 1},
        {"native": NATIVE},
    )
    assert _states(store) == ["started", "done"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_by_hand_two_parts_of_one_output_are_two_inputs(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints of a training carry its key; what is made from them must not be taken for one another."""
    _use(monkeypatch, _copy)
    for number in (1, 2):
        part = Output(store, f"{NATIVE}iter_{number}/", tmp_path / "parts")
        part.write_bytes("weights", str(number).encode())
        part.commit(task="checkpoint", key="00aa", name="m", output_version=1)
        file = tmp_path / "task.json"
        config = {"tensor_parallel": 1, "pipeline_parallel": 1}
        file.write_text(json.dumps({"config": config, "inputs": {"native": f"{NATIVE}iter_{number}/"}, "name": "m"}))
        assert contract.stage_main("shard", ["--store", store.url, "--config", str(file)]) == 0
    made = [store.get(info.key) for info in store.list("shards/") if info.key.endswith("rank")]
    assert sorted(made) == [b"1", b"2"]


def test_what_is_done_is_not_done_again(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _copy)
    _main(store)
    before = store.get(manifest_key(SHARDS))
    monkeypatch.delitem(sys.modules, "stagecoach_shard.run")
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert _main(store) == 0
    assert store.get(manifest_key(SHARDS)) == before
    assert _states(store)[-1] == "already done"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("c"), 78),
        (CorruptObjectError("d"), 79),
        (ObjectMissing("u", "k", "gone"), 66),
        (StoreUnavailable("u", "", "down"), 69),
        (InterruptedWithProgress("i"), 75),
        (OSError(28, "No space left on device", "/scratch/x"), 69),
        (RuntimeError("what"), 70),
        (SystemExit(3), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_has_its_exit_code_and_leaves_no_output(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def run(config: Section, inputs: Mapping[str, Input], output: Output, store: ObjectStore) -> None:
        output.write_bytes("half", b"x")
        raise error

    _use(monkeypatch, run)
    assert _main(store) == code
    assert store.head(manifest_key(SHARDS)) is None
    assert _states(store) == ["started", "failed"]


def test_a_missing_input_is_said_before_any_work(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.delete([manifest_key(NATIVE)])
    _use(monkeypatch, lambda *_: pytest.fail("it ran"))
    assert _main(store) == 66


def test_a_run_without_a_plan_is_a_missing_input(store: LocalStore) -> None:
    assert contract.stage_main("shard", ["--store", store.url, "--run", "20261125T013000Z-b"]) == 66


@pytest.mark.parametrize("run_id", ["../../etc", "a", "20261125T013000Z-a;rm"])
def test_a_run_id_that_is_no_run_id_is_refused(store: LocalStore, run_id: str) -> None:
    assert contract.stage_main("shard", ["--store", store.url, "--run", run_id]) == 78


def test_a_task_of_another_stage_is_refused(store: LocalStore) -> None:
    assert contract.stage_main("pack", ["--store", store.url, "--run", RUN, "--task", "shard"]) == 78


def test_check_makes_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, lambda *_: pytest.fail("it ran"))
    assert _main(store, "--check") == 0
    assert list(store.list("shards/")) == []
    assert _states(store) == []


def test_one_stage_by_hand(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _copy)
    config = {"tensor_parallel": 1, "pipeline_parallel": 1}
    file = tmp_path / "shard.json"
    file.write_text(json.dumps({"config": config, "inputs": {"native": NATIVE}, "name": "mine"}))
    assert contract.stage_main("shard", ["--store", store.url, "--config", str(file)]) == 0
    key = content_key("shard", 1, ShardConfig(**config), {"native": "00aa"})
    assert open_input(store, f"shards/mine-{key}/", tmp_path).read_bytes("rank") == b"0123"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"task": "pack"}', '{"more": 1}', '{"config": {"x": 1}}', '{"config": {}, "name": "../x"}']
)
def test_a_config_file_that_does_not_fit_is_refused(store: LocalStore, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    assert contract.stage_main("shard", ["--store", store.url, "--config", str(file)]) == 78


def test_small_files_for_the_workflow_engine_are_left_also_when_already_done(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, _copy)
    monkeypatch.setenv("STAGECOACH_ARTIFACTS", str(tmp_path / "artifacts"))
    for _ in range(2):
        assert _main(store) == 0
        assert json.loads((tmp_path / "artifacts/manifest.json").read_text())["key"] == "00ff"
        assert set(json.loads((tmp_path / "artifacts/metrics.json").read_text())) == {"task", "summary", "timings"}
        (tmp_path / "artifacts/manifest.json").unlink()


def test_effects_of_a_finished_output_are_done_also_later(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "shard", dataclasses.replace(TASKS["shard"], has_effects=True))
    seen: list[bytes] = []
    _use(monkeypatch, _copy)
    module = sys.modules["stagecoach_shard.run"]
    monkeypatch.setattr(
        module, "finish", lambda config, made, store: seen.append(made.read_bytes("rank")), raising=False
    )
    assert [_main(store), _main(store)] == [0, 0]
    assert seen == [b"0123", b"0123"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_in_whatever_form_is_asked_for_again(number: int) -> None:
    code, sentence = contract.exit_code_of(OSError(number, "no", "/scratch/x"))
    assert (code, sentence) == (69, "no space left on the disk that holds /scratch/x; free some and run again")
