"""One cluster for all tests of this folder, and a way to run recipes on it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.paths import finished_prefix
from stagecoach.plan_file import read_plan
from stagecoach.records import read_numbered
from stagecoach.storage.local import LocalStore
from tests.slurm.cluster import SlurmCluster, is_root, missing_programs, running_slurm

RUN = "20261125T013000Z-micro-slurm"
LONG = ("--set", "train.steps=800", "--set", "train.save_every_steps=20", "--set", "train.evaluate_every_steps=800")
"""A training that is still going on when it is disturbed, with checkpoints all along."""
WAIT_SECONDS = 900  # a busy machine


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster of four nodes."""
    missing = missing_programs()
    if missing or not is_root():
        pytest.skip(f"needs root and SLURM ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge")
    with running_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@dataclass(frozen=True, slots=True)
class Work:
    """A work folder with its store, and the command line on this cluster."""

    cluster: SlurmCluster
    folder: Path

    @property
    def store(self) -> LocalStore:
        """The store that runs use."""
        return LocalStore(self.folder / "store")

    def call(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Call ``stagecoach`` to its end, in this folder."""
        work = () if arguments[0] == "render" else ("--work", str(self.folder))
        return subprocess.run(
            [sys.executable, "-m", "stagecoach_workflows", *arguments, *work],
            env=self.cluster.environ(**environ),
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
            cwd=self.folder,
        )

    def run(
        self, *arguments: str, recipe: str = "micro", run_id: str = RUN, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a recipe to its end."""
        return self.call("run", recipe, "--runner", "slurm", "--run", run_id, *arguments, **environ)

    def submit(self, *arguments: str, run_id: str = RUN) -> None:
        """Submit the micro recipe."""
        done = self.call("submit", "micro", "--runner", "slurm", "--run", run_id, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def wait(self, run_id: str = RUN) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a run."""
        return self.call("status", run_id, "--wait")

    def configure(self, text: str) -> None:
        """Write slurm.yaml."""
        (self.folder / "slurm.yaml").write_text(text)

    def log(self, task: str, run_id: str = RUN) -> str:
        """Return what all attempts of a task wrote."""
        file = self.folder / run_id / "logs" / f"{task}.log"
        return file.read_text() if file.is_file() else ""

    def job(self, task: str, run_id: str = RUN) -> str:
        """Return the id of a task's job."""
        lines = (self.folder / run_id / "jobs").read_text().splitlines()
        return dict(line.split("\t") for line in lines)[task]

    def manifest(self, task: str, run_id: str = RUN) -> Manifest | None:
        """Return what a task has finished, None if it has not."""
        return read_manifest(self.store, read_plan(self.store, run_id).task(task).output)

    def finished(self, run_id: str = RUN) -> dict[str, object]:
        """Return the last record of how the run ended."""
        records = read_numbered(self.store, finished_prefix(run_id))
        return dict(records[max(records)])

    def wait_until(self, found: Callable[[], bool], what: str) -> None:
        """Wait for something to happen."""
        limit = time.monotonic() + WAIT_SECONDS
        while not found():
            assert time.monotonic() < limit, f"waited for {what}\n{self.log('train')}"
            time.sleep(0.2)


@pytest.fixture
def work(slurm: SlurmCluster, tmp_path: Path) -> Work:
    """A fresh work folder."""
    return Work(slurm, tmp_path)
