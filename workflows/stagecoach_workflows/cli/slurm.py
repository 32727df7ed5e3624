"""``stagecoach run --runner slurm`` and what ``submit``, ``status``, ``logs`` and ``cancel`` do for such a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from stagecoach.errors import MissingInputError
from stagecoach.paths import validate_run_id
from stagecoach.plan_file import read_plan
from stagecoach.recipe.recipe import Recipe
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach.terminal import console
from stagecoach_workflows.cli.following import follow, show_state
from stagecoach_workflows.cli.report import show_results
from stagecoach_workflows.deployment import load_deployment
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.run_ids import new_run_id
from stagecoach_workflows.slurm.checks import check_tasks
from stagecoach_workflows.slurm.client import Slurm
from stagecoach_workflows.slurm.config import SlurmConfig, load_slurm_config
from stagecoach_workflows.slurm.runs import SlurmRun, SlurmRuns, find_run, tail
from stagecoach_workflows.slurm.scripts import Scripts

_PROBE_SECONDS = 60.0
_console = console()


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmSubmission:
    """A recipe, a store, a cluster and a run id that belong together."""

    recipe: Recipe
    store: ObjectStore
    scripts: Scripts
    config: SlurmConfig
    run: SlurmRun

    @classmethod
    def of(
        cls,
        recipe: str,
        settings: Sequence[str],
        *,
        store_url: str,
        run_id: str,
        work: Path,
        slurm_file: Path | None,
        deployment: Path | None,
        images: Path | None,
    ) -> SlurmSubmission:
        """Read what the user typed.

        Raises:
            ConfigError: The recipe, the store's address, a file or the run id is not valid.
        """
        loaded = load_recipe(recipe, settings)
        config = load_slurm_config(slurm_file)
        if config.python is None:
            config = config.model_copy(update={"python": sys.executable})
        store = open_store(store_url or str(work.absolute() / "store"), Settings.from_environ())
        run = validate_run_id(run_id) if run_id else new_run_id(loaded.name, time.time())
        scripts = Scripts.of(loaded, load_deployment(deployment, images), config, store.url)
        return cls(recipe=loaded, store=store, scripts=scripts, config=config, run=find_run(work, run))

    def submit(self) -> bool:
        """Check, plan and submit; False if there is nothing to do.

        Raises:
            StagecoachError: The cluster cannot give what is asked for, or a compute node cannot take part.
        """
        slurm = Slurm()
        check_tasks(self.scripts.tasks, self.config, slurm.nodes())
        self.scripts.write(self.run.scripts)
        typer.echo(f"run {self.run.run_id} of {self.recipe.name} in {self.store.url}")
        jobs = self.run.submit()
        if not jobs:
            typer.echo("nothing to do: every output is there, no job was submitted")
            return False
        typer.echo("jobs: " + ", ".join(f"{task} {job_id}" for task, job_id in jobs.items()))
        if not SlurmRuns(slurm, self.run.folder.parent).wait_for_probe(self.run, _PROBE_SECONDS):
            typer.echo(f"the probe job waits in the queue; look again with: stagecoach status {self.run.run_id}")
        return True

    def follow(self) -> int:
        """Show how the run goes until it ends, then what it made; return its exit code."""
        code = follow(SlurmRuns(Slurm(), self.run.folder.parent), self.run.run_id)
        if code == 0:
            self.show_results()
        return code

    def show_results(self) -> None:
        """Show what the run made."""
        show_results(_console, self.store, read_plan(self.store, self.run.run_id), self.recipe)


def submitted_run(work: Path, run_id: str) -> SlurmRun | None:
    """Return the run if it was submitted to SLURM from this work folder."""
    run = find_run(work, run_id)
    return run if run.is_submitted else None


def status(run: SlurmRun, *, wait: bool) -> int:
    """Show how a run on SLURM is doing."""
    runs = SlurmRuns(Slurm(), run.folder.parent)
    if wait:
        return follow(runs, run.run_id)
    show_state(runs.state(run.run_id))
    return 0


def logs(run: SlurmRun, task: str, *, follow: bool, tail_lines: int | None) -> None:
    """Show what the tasks of a run on SLURM wrote, all attempts."""
    jobs = run.jobs()
    if task and task not in jobs:
        raise MissingInputError(f"run {run.run_id}: expected a task of {', '.join(jobs)}, got {task!r}")
    wanted = [task] if task else [name for name in jobs if run.log(name).is_file()]
    for name in wanted:
        mark = f"{name}: " if len(wanted) > 1 else ""
        lines = (
            SlurmRuns(Slurm(), run.folder.parent).follow_log(run, name) if follow else tail(run.log(name), tail_lines)
        )
        for line in lines:
            typer.echo(f"{mark}{line}")


def cancel(run: SlurmRun, *, now: bool) -> None:
    """End a run on SLURM."""
    SlurmRuns(Slurm(), run.folder.parent).end(run, at_once=now)
    typer.echo(f"the jobs of run {run.run_id} are asked to end")
