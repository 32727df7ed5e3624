"""Which runs there are and how they went, read from plans and numbered records alone."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.paths import finished_prefix, is_run_id, task_record_prefix
from stagecoach.plan_file import Plan, read_plan
from stagecoach.records import read_numbered, read_sealed, record_keys
from stagecoach.storage.base import ObjectStore

_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One line of ``stagecoach ls``."""

    run_id: str
    recipe: str
    state: str
    """``succeeded``, ``failed``, ``running`` (a task has not ended), ``planned``, ``unreadable`` (see ``problem``)."""
    step: int | None
    """Last training step, once ``train`` has finished."""
    loss: float | None
    """Training loss of that step."""
    age_seconds: float
    """Seconds since the plan was made."""
    problem: str | None = None
    """What is damaged, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """One task of ``stagecoach show``."""

    task: str
    decision: str
    reason: str
    state: str
    output: str
    num_objects: int | None
    size_bytes: int | None
    seconds: float | None
    attempts: int
    message: str | None
    summary: dict[str, Any] = field(default_factory=dict)


def list_runs(store: ObjectStore, limit: int = 50, since: str = "") -> list[RunRow]:
    """Return the newest runs, newest first.

    Args:
        store: The bucket.
        limit: Most rows to return; the others are not read, so that ten thousand runs cost one listing.
        since: Leave out runs whose id (which begins with UTC time) is below this text.
    """
    if since and not _is_time(since):
        raise ConfigError(f"--since: expected a UTC time such as 20261125 or 20261125T0130, got {since[:80]!r}")
    run_ids = [run_id for run_id in newest_run_ids(store) if run_id >= since][:limit]
    with ThreadPoolExecutor(_READERS) as pool:
        return [row for row in pool.map(lambda run_id: _row(store, run_id), run_ids) if row is not None]


def _is_time(text: str) -> bool:
    """Say whether a text is the beginning of a UTC time as run ids have it, cut behind a year, month, day or so on."""
    if not re.fullmatch(r"\d{4}(?:\d{2}(?:\d{2}(?:T(?:\d{2}){0,3})?)?)?|\d{8}T\d{6}Z", text, re.ASCII):
        return False
    try:
        datetime.strptime(text + "00000101T000000Z"[len(text) :], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return False
    return True


def newest_run_ids(store: ObjectStore) -> list[str]:
    """Return the ids of all runs, newest first; folders whose name is no run id are none."""
    return sorted((name for name in store.list_folders("runs/") if is_run_id(name)), reverse=True)


def show_run(store: ObjectStore, run_id: str) -> tuple[Plan, list[TaskRow]]:
    """Return a run's plan and what became of each of its tasks.

    Raises:
        MissingInputError: There is no such run.
    """
    plan = read_plan(store, run_id)
    with ThreadPoolExecutor(_READERS) as pool:
        return plan, list(pool.map(lambda task: _task_row(store, plan, task), plan.tasks))


def numbers(row: TaskRow) -> dict[str, float]:
    """Return the counts and measured values that a task's summary holds at its top, and the last held-out evaluation."""
    held_out = row.summary.get("heldout_last") or {}
    values = {**row.summary, **{f"held-out {name}": value for name, value in held_out.items()}}
    return {
        name.replace("_", " "): value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def compare_runs(store: ObjectStore, first: str, second: str) -> list[tuple[str, Any, Any]]:
    """Return every value in which two runs differ: recipe fields, keys and summaries of their outputs.

    Raises:
        MissingInputError: One of the runs does not exist.
    """
    left, right = (_facts(store, run_id) for run_id in (first, second))
    names = sorted(set(left) | set(right))
    return [(name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)]


def as_json(rows: list[RunRow] | list[TaskRow]) -> list[dict[str, Any]]:
    """Return rows as plain dictionaries, for ``--json``."""
    return [asdict(row) for row in rows]


def state_of(store: ObjectStore, plan: Plan) -> str:
    """Return a run's state from its finish record, or from its tasks' records where no runner wrote one.

    A run that failed and was asked to go on runs again once one of its tasks has started after that record.
    """
    finished = read_numbered(store, finished_prefix(plan.run_id))
    ended = finished[max(finished)] if finished else None
    if ended is not None and ended.get("state") == "succeeded":
        return "succeeded"
    last = [_last_record(store, plan.run_id, task.task) for task in plan.tasks.values() if task.decision == "run"]
    if ended is not None:
        since = float(ended.get("unix_seconds", "inf"))
        again = any(record.get("state") == "started" and record.get("unix_seconds", 0.0) > since for record in last)
        return "running" if again else str(ended.get("state", "failed"))
    states = [record.get("state", "") for record in last]
    if "failed" in states:
        return "failed"
    if all(state in ("done", "already done") for state in states):
        return "succeeded"
    return "running" if any(states) else "planned"


def has_ended(store: ObjectStore, plan: Plan) -> bool:
    """Say whether nothing more will happen: a task that failed may be tried again until a runner says that it gives up."""
    state = state_of(store, plan)
    return state == "succeeded" or (state == "failed" and bool(record_keys(store, finished_prefix(plan.run_id))))


def _row(store: ObjectStore, run_id: str) -> RunRow | None:
    try:
        plan = read_plan(store, run_id)
    except MissingInputError:
        return None  # a folder under runs/ without a plan is no run
    except CorruptObjectError as error:
        began = datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return _unreadable(run_id, "?", began.timestamp(), error)
    recipe = str(plan.recipe.get("name", "?"))
    try:
        step, loss = _training(store, plan)
        state = state_of(store, plan)
    except CorruptObjectError as error:
        return _unreadable(run_id, recipe, plan.created_unix_seconds, error)
    age_seconds = max(0.0, time.time() - plan.created_unix_seconds)
    return RunRow(run_id=run_id, recipe=recipe, state=state, step=step, loss=loss, age_seconds=age_seconds)


def _unreadable(run_id: str, recipe: str, began_unix_seconds: float, error: CorruptObjectError) -> RunRow:
    age_seconds = max(0.0, time.time() - began_unix_seconds)
    return RunRow(
        run_id=run_id,
        recipe=recipe,
        state="unreadable",
        step=None,
        loss=None,
        age_seconds=age_seconds,
        problem=str(error),
    )


def _training(store: ObjectStore, plan: Plan) -> tuple[int | None, float | None]:
    manifest = read_manifest(store, plan.tasks["train"].output) if "train" in plan.tasks else None
    if manifest is None:
        return None, None
    step, loss = manifest.summary.get("last"), manifest.summary.get("last_loss")
    return (int(step) if step is not None else None), (float(loss) if loss is not None else None)


def _last_record(store: ObjectStore, run_id: str, task: str) -> dict[str, Any]:
    numbers = record_keys(store, task_record_prefix(run_id, task))
    return read_sealed(store, numbers[max(numbers)]) if numbers else {}


def _task_row(store: ObjectStore, plan: Plan, name: str) -> TaskRow:
    entry = plan.tasks[name]
    records = read_numbered(store, task_record_prefix(plan.run_id, name))
    last = records[max(records)] if records else {}
    manifest = read_manifest(store, entry.output)
    return TaskRow(
        task=name,
        decision=entry.decision,
        reason=entry.reason,
        state=str(last.get("state", "skipped" if entry.decision == "skip" else "waiting")),
        output=entry.output,
        num_objects=len(manifest.objects) if manifest else None,
        size_bytes=manifest.size_bytes if manifest else None,
        seconds=_seconds(manifest),
        attempts=sum(record.get("state") == "started" for record in records.values()),
        message=last.get("message"),
        summary=manifest.summary if manifest else {},
    )


def _seconds(manifest: Manifest | None) -> float | None:
    if manifest is None or "finished_unix_seconds" not in manifest.timings:
        return None
    return round(manifest.timings["finished_unix_seconds"] - manifest.timings["started_unix_seconds"], 3)


def _facts(store: ObjectStore, run_id: str) -> dict[str, Any]:
    plan, rows = show_run(store, run_id)
    facts = _flat("recipe", plan.recipe)
    for row in rows:
        facts[f"{row.task}.key"] = plan.tasks[row.task].key
        facts.update(_flat(row.task, row.summary))
    return facts


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for key, part in value.items() for name, leaf in _flat(f"{prefix}.{key}", part).items()}
    return {prefix: value}


def utc(unix_seconds: float) -> str:
    """Return a time as ``2026-11-25 01:30:00Z``."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
