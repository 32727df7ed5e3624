"""Trainings that are killed, stopped or started twice: the next attempt ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.manifest import read_manifest
from stagecoach.metrics_file import read_metrics
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from tests.faults.train_driver import TRAINED
from tests.unit.stagecoach_train.tiny_inputs import tiny_inputs

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "steps": 40,  # long enough to be hit in the middle, a second or so
    "packs_per_step": 8,
    "lr": 1e-2,
    "min_lr": 1e-3,
    "compute_dtype": "fp32",
    "save_every_steps": 8,
    "evaluate_every_steps": 25,
}
WAIT_SECONDS = 300  # a busy machine; what has a limit of its own is measured apart
TWO_RANKS: dict[str, Any] = {"layout": {"data_parallel": 2}}


class Training:
    """One training in a directory store, run by the driver in processes of their own."""

    def __init__(self, folder: Path, store: ObjectStore | None = None, **config: Any) -> None:
        self.folder = folder
        self.config = {**CONFIG, **config}
        self.store: ObjectStore = store or LocalStore(folder / "store")
        tiny_inputs(self.store, folder / "make")
        self.logs = 0

    def start(
        self, run_id: str = "run-a", before: Callable[[], None] | None = None, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Start an attempt in a process group of its own; ``before`` is called in it first."""
        self.logs += 1
        with open(self.folder / f"log-{self.logs}", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.train_driver", self.store.url, run_id, json.dumps(self.config)],
                cwd=ROOT,
                env={
                    **os.environ,
                    "STAGECOACH_SCRATCH": str(self.folder / "scratch"),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "OMP_NUM_THREADS": "1",
                    **environ,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=before,
            )

    def finish(self, run_id: str = "run-a") -> None:
        """Run an attempt to its end."""
        process = self.start(run_id)
        assert process.wait(timeout=WAIT_SECONDS) == 0, self.log

    @property
    def log(self) -> str:
        return (self.folder / f"log-{self.logs}").read_text()

    def wait_for(self, condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
        limit = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert process.poll() is None, self.log
            assert time.monotonic() < limit, self.log
            time.sleep(0.02)

    def has_checkpoint(self) -> bool:
        return any(info.key.endswith("/manifest.json") for info in self.store.list(TRAINED + "iter_"))

    @property
    def last_loss(self) -> float:
        manifest = read_manifest(self.store, TRAINED)
        assert manifest is not None, "not finished"
        return float(manifest.summary["last_loss"])

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Attempt and number of every step that the metrics in the store hold."""
        records = read_metrics(self.store, TRAINED)
        return [(record["attempt"], record["step"]) for record in records if record["kind"] == "step"]

    @property
    def weights(self) -> list[str]:
        """Digests of the last checkpoint's tensor files: weights and moments, bit by bit."""
        manifest = read_manifest(self.store, TRAINED)
        assert manifest is not None, "not finished"
        names = sorted(name for name in manifest.objects if re.match(r"iter_0000040/rank-", name))
        return [manifest.objects[name].sha256 for name in names]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Training]:
    """Undisturbed trainings on one and on two ranks."""
    finished = {}
    for ranks, config in {1: {}, 2: TWO_RANKS}.items():
        training = Training(tmp_path_factory.mktemp(f"undisturbed-{ranks}"), **config)
        training.finish()
        finished[ranks] = training
    return finished


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Training]:
    yield Training(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Training]:
    yield Training(tmp_path, **TWO_RANKS)


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the ranks, in the order of their start."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(ranks: list[int]) -> None:
    """Wait for the last of these processes; 10 seconds after a failure they are all gone, on a busy machine too."""
    limit_seconds = time.monotonic() + 10
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() < limit_seconds
        time.sleep(0.05)


def test_killed_between_two_checkpoint_objects(one: Training, undisturbed: dict[int, Training]) -> None:
    process = one.start(STAGECOACH_FAULT="between two checkpoint objects")
    assert process.wait(timeout=WAIT_SECONDS) == -signal.SIGKILL
    assert not one.has_checkpoint()
    one.finish()
    assert one.weights == undisturbed[1].weights


def test_killed_in_the_middle(one: Training, undisturbed: dict[int, Training]) -> None:
    process = one.start()
    one.wait_for(one.has_checkpoint, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert one.steps[:8] == [(1, step) for step in range(1, 9)]  # what leads to a checkpoint is there before it is
    one.finish()
    assert "from iteration" in one.log
    assert one.weights == undisturbed[1].weights
    assert [step for _, step in one.steps] == list(range(1, 41))


def test_sigterm_saves_and_exits_75_within_10_seconds(two: Training, undisturbed: dict[int, Training]) -> None:
    process = two.start()
    two.wait_for(two.has_checkpoint, process)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 75, two.log
    assert time.monotonic() - started < 10
    stopped_after = re.search(r"stopped after step (\d+) of 40 \(SIGTERM arrived\), everything is saved", two.log)
    assert stopped_after, two.log
    two.finish()
    assert f"attempt 2, from iteration {stopped_after[1]}" in two.log
    assert two.weights == undisturbed[2].weights


def test_sigterm_before_the_first_step(two: Training) -> None:
    process = two.start()
    two.wait_for(lambda: len(ranks_of(process)) == 2, process)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 75, two.log
    assert time.monotonic() - started < 10


def test_a_killed_rank_is_named_and_ends_the_run(two: Training, undisturbed: dict[int, Training]) -> None:
    process = two.start()
    two.wait_for(two.has_checkpoint, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    wait_for_the_end_of(ranks)
    assert process.wait(timeout=WAIT_SECONDS) == 71, two.log
    assert "rank 1 of 2: was ended by SIGKILL" in two.log
    two.finish()
    assert two.weights == undisturbed[2].weights


def test_ranks_end_when_their_launcher_is_killed(two: Training, undisturbed: dict[int, Training]) -> None:
    process = two.start()
    two.wait_for(two.has_checkpoint, process)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    wait_for_the_end_of(ranks)
    two.finish()
    assert two.weights == undisturbed[2].weights


def test_two_equal_trainings_at_once_do_the_work_once(one: Training, undisturbed: dict[int, Training]) -> None:
    first = one.start("run-a")
    one.wait_for(lambda: one.store.head(TRAINED + "heartbeat-0001.json"), first)
    second = one.start("run-b")
    assert (first.wait(timeout=WAIT_SECONDS), second.wait(timeout=WAIT_SECONDS)) == (0, 0), one.log
    assert one.weights == undisturbed[1].weights


def test_another_layout_goes_on_from_any_checkpoint(two: Training, undisturbed: dict[int, Training]) -> None:
    """Loss-exact, not bit-exact: sums over ranks round differently."""
    process = two.start()
    two.wait_for(two.has_checkpoint, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 75
    two.config = {**two.config, "layout": {"tensor_parallel": 2}}
    two.finish()
    assert two.last_loss == pytest.approx(undisturbed[2].last_loss, abs=1e-5)
