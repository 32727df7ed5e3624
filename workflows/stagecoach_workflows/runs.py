"""Runs a recipe on this machine: builds its workflow, interprets it, and records in the store how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stagecoach.errors import StagecoachError
from stagecoach.paths import finished_prefix
from stagecoach.recipe.recipe import Recipe
from stagecoach.records import write_numbered
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.engine import Engine, Launcher, Outcome, TaskRun
from stagecoach_workflows.interpret import read_workflow
from stagecoach_workflows.render import template_document


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a recipe is run on this machine."""

    run_id: str
    runner: str
    """``local`` or ``docker``; told to the plan."""
    folder: Path
    """Folder of this run's logs and small files."""
    max_parallel: int = 4
    max_retries: int | None = None


def make_engine(
    recipe: Recipe,
    store: ObjectStore,
    launcher: Launcher,
    options: RunOptions,
    *,
    deployment: Deployment | None = None,
    on_tick: Callable[[Mapping[str, TaskRun]], None] = lambda runs: None,
) -> Engine:
    """Return an engine that is ready to run the recipe's workflow, the same that a cluster would get.

    Raises:
        ConfigError: The workflow needs something that one machine does not have, such as several nodes.
    """
    graph = read_workflow(template_document(recipe, deployment or Deployment()))
    return Engine(
        graph,
        launcher,
        options.folder,
        parameters={"store": store.url, "run": options.run_id, "runner": options.runner},
        on_tick=on_tick,
        max_parallel=options.max_parallel,
        max_retries=options.max_retries,
    )


def record_end(store: ObjectStore, run_id: str, outcome: Outcome, runner: str) -> None:
    """Write how the run ended; a store that does not answer must not hide how it ended."""
    values = {
        "unix_seconds": round(time.time(), 3),
        "state": "succeeded" if outcome.exit_code == 0 else "failed",
        "exit_code": outcome.exit_code,
        "failed_task": outcome.failed_task,
        "message": outcome.message,
        "runner": runner,
    }
    try:
        write_numbered(store, finished_prefix(run_id), values)
    except StagecoachError:
        return
