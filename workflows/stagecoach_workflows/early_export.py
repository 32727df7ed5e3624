"""Exports one checkpoint of a run that is still training, so that people can talk to the model before it is done.

The export stage reads the checkpoint's own folder instead of a finished training; its iteration and attempt are in the
export's key, so that nobody takes it for what the run will make. The run itself is not touched.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stagecoach.keys import content_key
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.outputs import input_key, open_input
from stagecoach.paths import output_prefix
from stagecoach.plan_file import Plan
from stagecoach.recipe.export import ExportConfig
from stagecoach.stages import TASKS
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.bucket.checkpoints import choose
from stagecoach_workflows.looking import run_module


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyExport:
    """What is asked of the export stage."""

    trained: str
    """Folder of the checkpoint, or of the whole training if that is finished."""
    output: str
    """Folder that the export gets."""
    request: str
    """JSON for ``python -m stagecoach_export --config -``."""


def early_export(store: ObjectStore, plan: Plan, wanted: int | Literal["last", "best"], scratch: Path) -> EarlyExport:
    """Return what to ask for; of a finished training its own export's settings, with another iteration.

    Raises:
        MissingInputError: The training has not committed such a checkpoint.
    """
    export, folder = plan.task("export"), plan.task("train").output
    finished = read_manifest(store, folder)
    trained, number = folder, _number(finished, wanted) if finished is not None else None
    if finished is None:
        checkpoint = choose(store, folder, wanted)
        trained, number = checkpoint.prefix(folder), checkpoint.iteration
    config = ExportConfig.model_validate(
        {**export.config, "iteration": wanted if number is None else number, "release": None, "push": None}
    )
    inputs = {**export.inputs, "trained": trained}
    keys = {name: input_key(open_input(store, prefix, scratch)) for name, prefix in sorted(inputs.items())}
    kind = TASKS["export"]
    request = {"task": kind.name, "name": export.name, "config": config.model_dump(mode="json"), "inputs": inputs}
    return EarlyExport(
        trained=trained,
        output=output_prefix(kind.writes, export.name, content_key(kind.name, kind.output_version, config, keys)),
        request=json.dumps(request),
    )


def _number(finished: Manifest, wanted: int | Literal["last", "best"]) -> int | None:
    """Return the number that a finished training gave to a word; None for "best" where it never evaluated."""
    return finished.summary.get(wanted) if isinstance(wanted, str) else wanted


def run_early_export(store: ObjectStore, wanted: EarlyExport) -> None:
    """Run the export stage here; raises ``StageFailed`` with its exit code if it fails."""
    run_module(["stagecoach_export", "--store", store.url, "--config", "-"], wanted.request)
