"""Gathers from the bucket alone what the report of a run shows, also while the run goes on or after it failed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecoach.errors import CorruptObjectError, MissingInputError
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.metrics_file import every_record, merged, newest
from stagecoach.plan_file import Plan
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.bucket.lineage import LineageNode, lineage
from stagecoach_workflows.bucket.releases import OfferOutcome, offer_outcome
from stagecoach_workflows.bucket.runs import TaskRow, show_run, state_of
from stagecoach_workflows.report.prices import price_of

_REPORT_JSON = "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptUse:
    """One attempt of the training, and the time for which it held its machines."""

    attempt: int
    first_step: int
    last_step: int
    seconds: float
    """From its first record to its last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPair:
    """One question, and what the model said before and after."""

    prompt: str
    before: str | None
    after: str | None
    expected: str | None
    right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Everything that the report shows."""

    plan: Plan
    state: str
    tasks: list[TaskRow]
    outcome: OfferOutcome | None
    records: list[dict[str, Any]] = field(default_factory=list)
    """The training's metrics."""
    attempts: list[AttemptUse] = field(default_factory=list)
    answers: list[AnswerPair] = field(default_factory=list)
    answers_steps: tuple[int, int] = (0, 0)
    """Steps at which ``before`` and ``after`` were asked."""
    data: dict[str, Any] = field(default_factory=dict)
    """What pack reported; empty without packs."""
    origin: LineageNode | None = None
    """Where the export, or else the packs, came from."""
    usd_per_gpu_hour: float | None = None

    @property
    def train(self) -> dict[str, Any]:
        """The training's summary, empty while it is not finished."""
        return self.task("train").summary

    @property
    def gpus(self) -> int:
        """GPUs that the training holds."""
        train = self.plan.recipe.get("train") or {}
        return int(train.get("gpus", 0)) * int(train.get("nodes", 1))

    @property
    def gpu_hours(self) -> float:
        """GPUs times the hours of all attempts, also of those that were interrupted."""
        return self.gpus * sum(attempt.seconds for attempt in self.attempts) / 3600

    def task(self, name: str) -> TaskRow:
        """Return a task's row."""
        return next(row for row in self.tasks if row.task == name)

    def values(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of one number of the step records, as far as it was measured."""
        return [
            (float(record["step"]), float(record[name]))
            for record in self.of_kind("step")
            if isinstance(record.get(name), int | float)
        ]

    def typical(self, name: str) -> float | None:
        """Return the median of one number of the step records; the first tenth, which warms up, is left out."""
        values = [value for _, value in self.values(name)]
        return statistics.median(values[len(values) // 10 :]) if values else None

    def of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the records of one kind, the highest attempt's where several have a step."""
        found = {record["step"]: record for record in self.records if record["kind"] == kind}
        return iter(found[step] for step in sorted(found))


def gather(store: ObjectStore, run_id: str, usd_per_gpu_hour: float | None = None) -> RunFacts:
    """Return the facts of a run.

    Args:
        store: The bucket.
        run_id: The run.
        usd_per_gpu_hour: Price to count with; None looks the GPU up in ``prices.py``.

    Raises:
        MissingInputError: There is no such run.
        CorruptObjectError: Something that is shown cannot be read.
    """
    plan, tasks = show_run(store, run_id)
    every = every_record(store, plan.tasks["train"].output) if "train" in plan.tasks else []
    records = list(merged(every))
    before, after = _answer_steps(records)
    return RunFacts(
        plan=plan,
        state=state_of(store, plan),
        tasks=tasks,
        outcome=offer_outcome(store, plan),
        records=records,
        attempts=_attempts(every),
        answers=_answer_pairs(records, before, after),
        answers_steps=(before, after),
        data=_data(store, plan),
        origin=_origin(store, plan),
        usd_per_gpu_hour=usd_per_gpu_hour if usd_per_gpu_hour is not None else price_of(_device(records)),
    )


def _device(records: Sequence[dict[str, Any]]) -> str | None:
    return next(
        (str(record["device"]) for record in records if record["kind"] == "start" and record.get("device")), None
    )


def _attempts(records: Sequence[dict[str, Any]]) -> list[AttemptUse]:
    uses = []
    for attempt in sorted({int(record["attempt"]) for record in records}):
        mine = [record for record in records if record["attempt"] == attempt]
        times = [float(record["unix_seconds"]) for record in mine if "unix_seconds" in record]
        steps = [int(record["step"]) for record in mine]
        uses.append(
            AttemptUse(
                attempt=attempt,
                first_step=min(steps),
                last_step=max(steps),
                seconds=round(max(times) - min(times), 3) if times else 0.0,
            )
        )
    return uses


def _answer_steps(records: Sequence[dict[str, Any]]) -> tuple[int, int]:
    steps = [int(record["step"]) for record in records if record["kind"] == "answers"]
    return (min(steps), max(steps)) if steps else (0, 0)


def _answer_pairs(records: Sequence[dict[str, Any]], before: int, after: int) -> list[AnswerPair]:
    first, last = ((newest(records, "answers", step) or {}).get("answers", []) for step in (before, after))
    known = {str(answer.get("prompt")): answer for answer in first}
    return [
        AnswerPair(
            prompt=str(answer.get("prompt")),
            before=str(known.get(str(answer.get("prompt")), {}).get("answer")) if after > before else None,
            after=str(answer.get("answer")),
            expected=str(answer["expected"]) if "expected" in answer else None,
            right=bool(answer["right"]) if "right" in answer else None,
        )
        for answer in last
    ]


def _data(store: ObjectStore, plan: Plan) -> dict[str, Any]:
    manifest = _manifest(store, plan, "pack")
    if manifest is None:
        return {}
    entry = manifest.objects.get(_REPORT_JSON)
    if entry is None or store.head(entry.path) is None:
        return dict(manifest.summary)
    try:
        return {**manifest.summary, **json.loads(store.get(entry.path))}
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptObjectError(f"{store.url.rstrip('/')}/{entry.path}: expected JSON, got: {error}") from error


def _origin(store: ObjectStore, plan: Plan) -> LineageNode | None:
    for task in ("export", "train", "pack"):
        if _manifest(store, plan, task) is not None:
            try:
                return lineage(store, plan.task(task).output)
            except MissingInputError:
                continue
    return None


def _manifest(store: ObjectStore, plan: Plan, task: str) -> Manifest | None:
    return read_manifest(store, plan.tasks[task].output) if task in plan.tasks else None
