"""The micro recipe, killed in every stage: the same command then finishes, with the bits of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stagecoach.faults import AFTER_LAST_OBJECT, BETWEEN_CHECKPOINT_OBJECTS
from stagecoach.records import read_numbered
from tests.micro_run import RUN, WAIT_SECONDS, MicroWork

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once
KILLED = 128 + signal.SIGKILL
MISSING = {
    "download-model": ("download-model", "convert", "export"),
    "convert": ("convert", "export"),
    "shard": ("shard", "train", "export"),
    "pack": ("pack", "train", "export"),
    "export": ("export",),
}
"""What is taken out of a copy of the finished store, so that the killed stage and little else has to run again."""
OFTEN = ("--set", "train.evaluate_every_steps=1")
"""Placement: the same training, a little slower, so that there is time to hit it."""


@pytest.mark.parametrize("task", MISSING)
def test_a_killed_stage_is_made_again(task: str, micro: MicroWork, tmp_path: Path) -> None:
    work = micro.copy_without(tmp_path, MISSING[task])

    run = work.start()
    until(lambda: any(record["state"] == "started" for record in records(work, task)), run)
    os.killpg(process_of(work, task), signal.SIGKILL)
    assert end_of(run) == KILLED
    assert work.manifest(task) is None

    killed = work.run(fault=AFTER_LAST_OBJECT)
    assert killed.returncode == KILLED, killed.stdout + killed.stderr
    assert f"{task} failed with exit code {KILLED}" in killed.stderr
    assert work.manifest(task) is None
    assert objects_of(work, task), "it was killed before its last object was there"

    finishes(work)
    assert work.digests(task) == micro.digests(task)
    assert weights(work) == weights(micro)


def test_a_killed_training_goes_on(micro: MicroWork, tmp_path: Path) -> None:
    work = micro.copy_without(tmp_path, ("train", "export"))

    killed = work.run(*OFTEN, fault=BETWEEN_CHECKPOINT_OBJECTS)
    assert killed.returncode == KILLED, killed.stdout + killed.stderr
    assert any(key.endswith(".safetensors") for key in objects_of(work, "train"))
    assert not checkpoints(work)

    run = work.start(*OFTEN)
    until(lambda: checkpoints(work), run)
    os.killpg(process_of(work, "train"), signal.SIGKILL)
    assert end_of(run) == KILLED
    assert work.manifest("train") is None

    killed = work.run(*OFTEN, fault=AFTER_LAST_OBJECT)
    assert killed.returncode == KILLED, killed.stdout + killed.stderr
    assert work.manifest("train") is None
    assert 8 in checkpoints(work)

    finishes(work, *OFTEN)
    assert "attempt 3, from iteration " in work.log("train"), work.log("train")
    assert weights(work) == weights(micro)


def test_a_training_that_is_asked_to_stop_saves(micro: MicroWork, tmp_path: Path) -> None:
    never = ("--set", "train.save_every_steps=8")  # placement: so that only the stop itself saves
    work = micro.copy_without(tmp_path, ("train", "export"))

    run = work.start(*OFTEN, *never)
    until(lambda: "step 1/8" in work.log("train"), run)
    asked_seconds = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert end_of(run) == 75, work.log("train")
    assert time.monotonic() - asked_seconds < 10
    saved = checkpoints(work)
    assert len(saved) == 1
    assert 0 < saved[0] < 8

    finishes(work, *OFTEN, *never)
    assert f"attempt 2, from iteration {saved[0]}" in work.log("train"), work.log("train")
    assert weights(work) == weights(micro)


def finishes(work: MicroWork, *arguments: str) -> None:
    """Run the same command again, undisturbed."""
    result = work.run(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr


def weights(work: MicroWork) -> str:
    """The digest of the exported weights."""
    return work.digests("export")["model.safetensors"]


def records(work: MicroWork, task: str) -> list[dict[str, object]]:
    """The task's records in the run, oldest first."""
    return list(read_numbered(work.store, f"runs/{RUN}/{task}/").values())


def objects_of(work: MicroWork, task: str) -> list[str]:
    """Keys of what a task has put into the store so far."""
    return [info.key for info in work.store.list(work.plan().task(task).output)]


def checkpoints(work: MicroWork) -> list[int]:
    """The iterations that are committed."""
    files = (work.folder / "store/trained").glob("*/iter_*/attempt-*/manifest.json")
    return sorted(int(file.parts[-3].removeprefix("iter_")) for file in files)


def process_of(work: MicroWork, task: str) -> int:
    """The process group in which a task runs."""
    wanted = {f"--store={work.store.url}".encode(), f"--task={task}".encode()}
    for folder in Path("/proc").iterdir():
        try:
            words = set((folder / "cmdline").read_bytes().split(b"\0")) if folder.name.isdecimal() else set()
            leads = folder.name.isdecimal() and os.getpgid(int(folder.name)) == int(folder.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if leads and wanted <= words:
            return int(folder.name)
    raise AssertionError(f"{task} does not run; it said: {work.log(task)}")


def until(condition: Callable[[], object], run: subprocess.Popen[str]) -> None:
    """Wait until it is so, while the run goes on."""
    limit_seconds = time.monotonic() + WAIT_SECONDS
    while not condition():
        in_time = time.monotonic() < limit_seconds
        if run.poll() is not None or not in_time:
            run.kill()
            raise AssertionError(f"it did not happen {'before the end' if in_time else 'in time'}: {run.communicate()}")
        time.sleep(0.005)


def end_of(run: subprocess.Popen[str]) -> int:
    """Wait for the run's end and return its exit code."""
    run.communicate(timeout=WAIT_SECONDS)
    return run.returncode
