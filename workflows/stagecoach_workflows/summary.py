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
        "convert": _said(summary, "{parameters:,} parameters, {vocab_size:,} tokens"),
        "pack": _said(summary, "{num_packs:,} packs, {num_trained_tokens:,} trained tokens"),
        "train": _said(summary, "{steps:,} steps, {tokens:,} tokens"),
        "export": _said(summary, "Hub directory, iteration {iteration}, {dtype}"),
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


def human_seconds(seconds: float) -> str:
    """Return a duration as people read it: ``8.4 s``, ``12 min 5 s``, ``7 h 30 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def losses(results_of_run: list[TaskResult]) -> dict[str, float]:
    """Return the training's losses by what they are: at the first step, at the last one, on held-out conversations."""
    train = next((result for result in results_of_run if result.task == "train"), None)
    if train is None:
        return {}
    heldout = train.summary.get("heldout_last") or {}
    values = {
        "first step": train.summary.get("first_loss"),
        "last step": train.summary.get("last_loss"),
        "held out": heldout.get("loss"),
    }
    return {label: float(value) for label, value in values.items() if value is not None}


def _said(summary: Mapping[str, Any], template: str) -> str | None:
    """Fill the template, or return None where the summary lacks one of its values."""
    try:
        return template.format(**summary)
    except (KeyError, ValueError):
        return None


def _seconds(manifest: Manifest) -> float:
    timings = manifest.timings
    return timings.get("finished_unix_seconds", 0.0) - timings.get("started_unix_seconds", 0.0)
