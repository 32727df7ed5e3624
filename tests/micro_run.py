"""The micro recipe through the real command line in a folder of its own; what pipeline, fault and golden tests share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.paths import manifest_key
from stagecoach.plan_file import Plan, read_plan
from stagecoach.settings import child_environ
from stagecoach.storage.local import LocalStore

TASKS = [
    "convert",
    "download-data-demo",
    "download-model",
    "download-tokenizer",
    "export",
    "pack",
    "shard",
    "train",
]
RUN = "20261125T013000Z-micro-first"
WAIT_SECONDS = 300  # a busy machine; what has a limit of its own is measured apart


@dataclass(frozen=True, slots=True)
class MicroWork:
    """A work folder with its store."""

    folder: Path

    @property
    def store(self) -> LocalStore:
        """The store that runs use."""
        return LocalStore(self.folder / "store")

    def command(self, *arguments: str, recipe: str = "micro", run_id: str = RUN) -> list[str]:
        """Return the command line of one run."""
        fixed = ["--work", str(self.folder), "--run", run_id, "--retries", "0"]
        return [sys.executable, "-m", "stagecoach_workflows", "run", recipe, *fixed, *arguments]

    def environment(self, fault: str | None = None) -> dict[str, str]:
        """Return the environment of a run; ``fault`` is the point at which a stage kills its process group."""
        scratch = str(self.folder / "scratch")
        return child_environ(STAGECOACH_SCRATCH=scratch, STAGECOACH_FAULT=fault, OMP_NUM_THREADS="1")

    def run(
        self,
        *arguments: str,
        recipe: str = "micro",
        run_id: str = RUN,
        fault: str | None = None,
        timeout_seconds: float = WAIT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self.command(*arguments, recipe=recipe, run_id=run_id),
            env=self.environment(fault),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def start(self, *arguments: str, run_id: str = RUN) -> subprocess.Popen[str]:
        """Start a run and return at once."""
        return subprocess.Popen(
            self.command(*arguments, run_id=run_id),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def plan(self, run_id: str = RUN) -> Plan:
        """Return a run's plan."""
        return read_plan(self.store, run_id)

    def manifest(self, task: str, run_id: str = RUN) -> Manifest | None:
        """Return what a task of a run has finished, None if it has not."""
        return read_manifest(self.store, self.plan(run_id).task(task).output)

    def digests(self, task: str, run_id: str = RUN) -> dict[str, str]:
        """Return the sha256 of every object of a finished task, by name."""
        manifest = self.manifest(task, run_id)
        assert manifest is not None, f"{task} is not finished"
        return {name: entry.sha256 for name, entry in manifest.objects.items()}

    def log(self, task: str, run_id: str = RUN) -> str:
        """Return what all attempts at a task have written."""
        file = self.folder / run_id / "logs" / f"{task}.log"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def copy_without(self, folder: Path, tasks: Iterable[str]) -> MicroWork:
        """Return a copy of the store, without the runs, in which these tasks have not happened."""
        plan = self.plan()
        shutil.copytree(self.folder / "store", folder / "store", ignore=shutil.ignore_patterns("runs"))
        copy = MicroWork(folder)
        for task in tasks:
            output = plan.task(task).output
            assert copy.store.head(manifest_key(output)) is not None, f"{task} was not there"
            shutil.rmtree(folder / "store" / output)
        return copy
