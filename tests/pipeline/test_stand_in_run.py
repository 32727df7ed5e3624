"""``stagecoach run`` as a user sees it, on stand-in stages: exit codes, sentences, retries, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.paths import finished_prefix
from stagecoach.plan_file import read_plan
from stagecoach.records import read_numbered
from tests.pipeline.stand_ins import StandIns, make_stand_ins

RUN = "20261125T013000Z-micro-ab12"


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return make_stand_ins(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    """A run that has ended well; tests that use it only look or run again."""
    made = make_stand_ins(tmp_path_factory.mktemp("finished"))
    result = made.run("--run", RUN)
    assert result.returncode == 0, result.stdout + result.stderr
    return made


def states(output: str) -> dict[str, str]:
    """The last state of each task in the plain lines of a run."""
    lines = [line.split(": ", 1) for line in output.splitlines() if ": " in line and not line.startswith("report: ")]
    return {parts[0]: parts[1].split()[0] for parts in lines if parts[0].islower() and " " not in parts[0]}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_every_task_makes_its_output(finished: StandIns) -> None:
    assert [name.split("/")[0] for name in finished.done()] == [
        "exports",
        "native",
        "packed",
        "shards",
        "sources",
        "sources",
        "sources",
        "trained",
    ]


def test_the_end_is_recorded(finished: StandIns) -> None:
    (record,) = read_numbered(finished.store, finished_prefix(RUN)).values()
    assert (record["state"], record["exit_code"], record["runner"]) == ("succeeded", 0, "local")


def test_each_task_has_a_log(finished: StandIns) -> None:
    logs = {path.name for path in (finished.folder / "work" / RUN / "logs").iterdir()}
    assert logs == {f"{task}.log" for task in ("plan", *read_plan(finished.store, RUN).tasks)}


def test_again_no_stage_starts(finished: StandIns) -> None:
    result = finished.run(stand_in="export:exit:70")
    assert result.returncode == 0
    assert set(states(result.stdout).values()) - {"skipped"} == {"done"}  # the plan
    assert list(states(result.stdout).values()).count("skipped") == 8
    assert "was there" in result.stdout


def test_the_same_run_id_again_starts_what_the_plan_says_and_finds_it_done(finished: StandIns) -> None:
    result = finished.run("--run", RUN)
    assert result.returncode == 0
    assert "already done" in (finished.folder / "work" / RUN / "logs/pack.log").read_text()


def test_the_same_run_id_with_another_recipe_is_refused(finished: StandIns) -> None:
    result = finished.run("--run", RUN, "--set", "train.seed=7")
    assert result.returncode == 78
    assert f"run {RUN}: exists with another recipe (train.seed: 1234 there, 7 here)" in result.stderr


def test_a_failing_stage_ends_the_run_with_its_code_sentence_and_log(stand_ins: StandIns) -> None:
    result = stand_ins.run("--run", RUN, stand_in="pack:exit:79")
    assert result.returncode == 79
    log = stand_ins.folder / "work" / RUN / "logs/pack.log"
    assert result.stderr == (
        f"pack failed with exit code 79: chat.jsonl: row 3: expected messages, got 7\nlog: {log}\n"
    )
    assert not any(name.startswith(("packed/", "trained/", "exports/")) for name in stand_ins.done())
    (record,) = read_numbered(stand_ins.store, finished_prefix(RUN)).values()
    assert (record["state"], record["failed_task"]) == ("failed", "pack")


def test_a_changed_pack_field_runs_what_depends_on_it(finished: StandIns) -> None:
    result = finished.run("--set", "pack.seed=5")
    ran = [task for task, state in states(result.stdout).items() if state == "done"]
    assert ran == ["plan", "pack", "train", "export"]


def test_an_interrupted_stage_is_tried_again(stand_ins: StandIns) -> None:
    # the wait before the retry is the workflow's own, 10 seconds
    result = stand_ins.run(stand_in="convert:exit-once:75")
    assert result.returncode == 0
    assert "convert: retrying (exit code 75)" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_stage_save_and_the_same_command_goes_on(stand_ins: StandIns, number: signal.Signals) -> None:
    process = subprocess.Popen(
        stand_ins.command("--run", RUN),
        env=stand_ins.environment("train:hang"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((stand_ins.folder / "hanging").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "stopped at step 5; run again to go on" in errors
    assert stand_ins.run("--run", RUN).returncode == 0


def test_a_runner_that_is_killed_takes_its_stages_with_it(stand_ins: StandIns) -> None:
    process = subprocess.Popen(
        stand_ins.command("--run", RUN),
        env=stand_ins.environment("train:hang"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    hanging = stand_ins.folder / "hanging"
    wait_for(lambda: hanging.exists() and hanging.read_text() != "")
    process.kill()
    process.wait()
    stage = int(hanging.read_text())
    wait_for(lambda: not _is_alive(stage), seconds=20)


def test_an_unknown_setting_is_one_sentence_before_any_work(stand_ins: StandIns) -> None:
    result = stand_ins.run("--set", "train.sed=7")
    assert (result.returncode, result.stderr) == (
        78,
        "--set train.sed: there is no field 'sed'; did you mean 'seed'?\n",
    )
    assert list(stand_ins.store.list("")) == []


def test_an_unknown_recipe_names_the_shipped_ones(stand_ins: StandIns) -> None:
    result = subprocess.run(
        stand_ins.command(recipe="nothing"), env=stand_ins.environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 78
    assert "tiny-cpu" in result.stderr


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()
