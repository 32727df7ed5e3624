"""Trainings that are stopped in each phase, run out of disk or lose their store: the next attempt has the same bits."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage.s3 import S3Options, S3Store
from tests.faults.test_train_kills import TWO_RANKS, WAIT_SECONDS, Training, ranks_of
from tests.faults.train_driver import LAST_PHASES, PHASES, place_of
from tests.seaweed import Restartable, restartable_seaweed

QUICK = ("evaluation",)
NOTHING_TO_SAVE = ("start", "warm-up")
pytestmark = pytest.mark.xdist_group("train-phases")  # one process, so that the undisturbed training is made once


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests of the last checkpoint of an undisturbed training."""
    training = Training(tmp_path_factory.mktemp("undisturbed"))
    training.finish()
    return training.weights


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def stands_in(training: Training, phase: str, seconds: float) -> dict[str, Any]:
    """The environment that lets the training stand still in a phase."""
    return {"TEST_PAUSE": f"{phase}:{seconds}:{training.folder / 'paused'}"}


@pytest.mark.parametrize("phase", [*PHASES, *LAST_PHASES])
def test_each_phase_is_a_function_of_the_product(phase: str) -> None:
    """Breaks where one is renamed, which most tests of phases, being slow ones, would say late."""
    assert callable(getattr(*place_of(phase)))


@pytest.mark.parametrize("phase", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PHASES])
def test_sigterm_in_each_phase(phase: str, training: Training, weights: list[str]) -> None:
    # With nothing to save it ends in the middle of what it does, however long that takes; a run may be stopped so again
    # and again: the fourth attempt is not refused as one without progress.
    seconds, times = (60.0, 3) if phase in NOTHING_TO_SAVE else (1.0, 1)
    for _ in range(times):
        (training.folder / "paused").unlink(missing_ok=True)
        process = training.start(**stands_in(training, phase, seconds))
        training.wait_for((training.folder / "paused").exists, process)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_SECONDS) == 75, training.log
        assert time.monotonic() - started < 10
    log = training.log
    training.finish()
    assert training.weights == weights
    if phase not in NOTHING_TO_SAVE:
        stopped = re.search(r"stopped after step (\d+) of 40 \(SIGTERM arrived\), everything is saved", log)
        assert stopped, log
        assert f"attempt 2, from iteration {stopped[1]}" in training.log


@pytest.mark.parametrize(
    ("phase", "layout"),
    [
        pytest.param(
            phase, layout, id=f"{phase}, {len(layout) + 1} ranks", marks=() if phase == "manifest" else pytest.mark.slow
        )
        for phase in LAST_PHASES
        for layout in ({}, {"data_parallel": 2})
        if not (phase == "last checkpoint" and layout)  # the pause is in the process that is told, not in its ranks
    ],
)
def test_sigterm_after_the_last_step_finishes(
    phase: str, layout: dict[str, int], tmp_path: Path, weights: list[str]
) -> None:
    """What is left takes less than a new attempt: the output is complete and the exit code 0."""
    training = Training(tmp_path, layout=layout)
    process = training.start(**stands_in(training, phase, 1.0))
    training.wait_for((training.folder / "paused").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 0, training.log
    assert "SIGTERM" not in training.log
    if layout:
        assert len(training.weights) == 2
    else:
        assert training.weights == weights


@pytest.mark.slow
def test_sigterm_in_a_step_of_many_seconds_waits_for_its_end(training: Training, weights: list[str]) -> None:
    process = training.start(**stands_in(training, "step", 8.0))
    training.wait_for((training.folder / "paused").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 75, training.log
    assert "stopped after step 12 of 40" in training.log
    training.finish()
    assert "attempt 2, from iteration 12" in training.log
    assert training.weights == weights


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["start", "warm-up", "evaluation", "upload", "commit", "retention"])
def test_kill_in_each_phase(phase: str, training: Training, weights: list[str]) -> None:
    process = training.start(**stands_in(training, phase, 60.0))
    training.wait_for((training.folder / "paused").exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    training.finish()
    assert training.weights == weights


def test_a_full_disk_during_a_checkpoint(training: Training, weights: list[str]) -> None:
    """A rank's file may not get as large as it has to; the sentence names it, and nothing half-written counts."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, 16 * 1024))

    process = training.start(before=limit)
    assert process.wait(timeout=WAIT_SECONDS) == 69, training.log
    assert "no space left on" in training.log.splitlines()[-1]
    assert "Traceback" not in training.log
    assert not training.has_checkpoint()
    training.finish()
    assert training.weights == weights


def test_a_disk_that_is_full_from_a_moment_on_with_two_ranks(tmp_path: Path) -> None:
    """From then on the ranks write no byte to any file: the checkpoint is not all that is lost, so is their report."""
    training = Training(tmp_path, **{**TWO_RANKS, "steps": 4000})
    process = training.start()
    training.wait_for(training.has_checkpoint, process)
    for rank in ranks_of(process):
        resource.prlimit(rank, resource.RLIMIT_FSIZE, (0, 0))
    assert process.wait(timeout=WAIT_SECONDS) == 69, training.log
    assert re.search(r"^rank [01] of 2: no space left on the disk that holds ", training.log.splitlines()[-1])
    assert "Traceback" not in training.log


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stopped and started", "stands still"])
def test_a_store_that_is_down_for_20_seconds(way: str, tmp_path: Path, weights: list[str]) -> None:
    """A real server; the training goes on meanwhile, and its checkpoints are stored when it is back."""
    with restartable_seaweed(tmp_path / "s3") as server, s3_training(server, tmp_path) as training:
        process = training.start()
        training.wait_for(training.has_checkpoint, process)
        down, up = (server.stop, server.start) if way == "stopped and started" else (server.freeze, server.thaw)
        down()
        time.sleep(20)
        assert process.poll() is None, training.log
        up()
        assert process.wait(timeout=WAIT_SECONDS) == 0, training.log
        assert training.weights == weights


@contextmanager
def s3_training(server: Restartable, folder: Path) -> Iterator[Training]:
    """A training whose store is that server's bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ().items():
            patch.setenv(name, value)
        options = S3Options(endpoint_url=server.server.endpoint_url, addressing="path")
        yield Training(folder, S3Store(server.server.bucket, "t", options))
