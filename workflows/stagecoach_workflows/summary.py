"""What a finished run has to show: one row a task, and the losses of the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.plan_file import Plan
from stagecoach.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One finished output of a run."""

    task: str
    output: str
    made: str
    """What it is, in a few words."""
    size_bytes: int
    seconds: float
    """How long making it took, whenever that was."""
    ran: bool
    """Whether this run made it."""
    summary: Mapping[str, Any]


def results(store: ObjectStore, plan: Plan) -> list[TaskResult]:
    """Return what the tasks of a finished run made, in their order; outputs that are not there are left out."""
    found = ((task, read_manifest(store, task.output)) for task in plan.tasks.values())
    return [
        TaskResult(
            task=task.task,
            output=task.output,
            made=describe(task.kind, manifest),
            size_bytes=manifest.size_bytes,
            seconds=_seconds(manifest),
            ran=task.decision == "run",
            summary=manifest.summary,
        )
        for task, manifest in found
        if manifest is not None
    ]


def describe(kind: str, manifest: Manifest) -> str:
    """Return what an output is, in a few words, from its summary as far as it says so."""
    summary = manifest.summary
    fallback = f"{len(manifest.objects)} objects"
    describers = {
        "convert": _first(summary, "{parameters:,} parameters, {vocab_size:,} tokens", "parameters", "vocab_size"),
        "pack": _first(
            summary, "{train_packs:,} packs, {trained_tokens:,} trained tokens", "train_packs", "trained_tokens"
        ),
        "train": _first(summary, "{steps:,} steps, {tokens:,} tokens", "steps", "tokens"),
        "export": _first(summary, "Hub directory of iteration {iteration}, {dtype}", "iteration", "dtype"),
    }
    return describers.get(kind) or fallback


def human_bytes(size_bytes: int) -> str:
    """Return a size as people read it: ``3.7 MB`` (10^6 bytes)."""
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    for unit in units:
        if size < 1000 or unit == units[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size_bytes} B"


def losses(results_of_run: list[TaskResult]) -> dict[str, float]:
    """Return the training's losses by what they are: at the first step, at the last one, on held-out conversations."""
    train = next((result for result in results_of_run if result.task == "train"), None)
    if train is None:
        return {}
    names = {"first_loss": "first step", "last_loss": "last step", "heldout_loss": "held out"}
    return {label: float(train.summary[name]) for name, label in names.items() if train.summary.get(name) is not None}


def _first(summary: Mapping[str, Any], template: str, *needs: str) -> str | None:
    return template.format(**summary) if all(name in summary for name in needs) else None


def _seconds(manifest: Manifest) -> float:
    timings = manifest.timings
    return timings.get("finished_unix_seconds", 0.0) - timings.get("started_unix_seconds", 0.0)
