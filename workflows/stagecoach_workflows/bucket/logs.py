"""What the tasks of a run wrote, from the chunks that each attempt left in the bucket while it ran, killed ones too."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from stagecoach.errors import MissingInputError, ObjectMissing
from stagecoach.paths import logs_prefix
from stagecoach.plan_file import Plan, read_plan
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.bucket.runs import has_ended

_CHUNK = re.compile(r"(?P<task>[a-z0-9-]+)/(?P<number>\d{4,})-(?P<chunk>\d{6,})\.txt")
_READERS = 16
_POLL_SECONDS = 2.0


@dataclass(kw_only=True, slots=True)
class AttemptLog:
    """What one attempt at a task wrote to standard error."""

    task: str
    attempt: int
    """1 is the task's first attempt of this run."""
    record: int
    """Number of the attempt's "started" record under ``runs/<run id>/<task>/``."""
    keys: list[str] = field(default_factory=list)
    """Its chunks, in order."""


def attempt_logs(store: ObjectStore, run_id: str, task: str = "", attempt: int | None = None) -> list[AttemptLog]:
    """Return the logs of a run by task in the plan's order, then by attempt; nothing is read but names.

    Args:
        store: The bucket.
        run_id: The run.
        task: Only this task's.
        attempt: Only this attempt's, from 1; -1 is the last one of each task.

    Raises:
        MissingInputError: There is no such run, or no such task in it.
    """
    plan = read_plan(store, run_id)
    if task:
        plan.task(task)
    return _wanted(store, plan, task, attempt)


def lines_of(store: ObjectStore, log: AttemptLog, skip_chunks: int = 0) -> Iterator[str]:
    """Yield the lines of one attempt, of the chunks after the first ``skip_chunks``."""
    with ThreadPoolExecutor(_READERS) as pool:
        for text in pool.map(lambda key: _text(store, key), log.keys[skip_chunks:]):
            yield from text.splitlines()


def follow(store: ObjectStore, run_id: str, task: str, attempt: int | None) -> Iterator[tuple[AttemptLog, list[str]]]:
    """Yield new lines as chunks appear, until the run has ended and everything was read; looks every two seconds."""
    plan = read_plan(store, run_id)
    seen: dict[tuple[str, int], int] = {}
    running = True
    while running:
        running = not has_ended(store, plan)  # asked before the look, so that the last chunk is read
        for log in _wanted(store, plan, task, attempt):
            read = seen.get((log.task, log.record), 0)
            seen[log.task, log.record] = len(log.keys)
            if len(log.keys) > read:
                yield log, list(lines_of(store, log, read))
        if running:
            time.sleep(_POLL_SECONDS)


def _wanted(store: ObjectStore, plan: Plan, task: str, attempt: int | None) -> list[AttemptLog]:
    prefix = logs_prefix(plan.run_id)
    found: dict[str, dict[int, AttemptLog]] = {}
    for info in sorted(store.list(f"{prefix}{task}/" if task else prefix), key=lambda info: info.key):
        match = _CHUNK.fullmatch(info.key.removeprefix(prefix))
        if match is None:
            continue
        attempts = found.setdefault(match["task"], {})
        number = int(match["number"])
        log = attempts.setdefault(number, AttemptLog(task=match["task"], attempt=len(attempts) + 1, record=number))
        log.keys.append(info.key)
    order = [name for name in plan.tasks if name in found]
    logs = {name: list(found[name].values()) for name in order}
    if attempt == -1:
        return [attempts[-1] for attempts in logs.values()]
    return [log for attempts in logs.values() for log in attempts if attempt in (None, log.attempt)]


def missing(run_id: str, task: str, attempt: int | None) -> MissingInputError:
    """Return the error for a run without any log of what was asked for."""
    what = f"task {task}" if task else "any task"
    which = "" if attempt is None else f" in attempt {attempt}"
    return MissingInputError(
        f"run {run_id}: expected a log of {what}{which} in the bucket, found none; a task that was skipped wrote none,"
        " and one that runs leaves its first lines after some seconds"
    )


def _text(store: ObjectStore, key: str) -> str:
    try:
        return store.get(key).decode("utf-8", "replace")
    except ObjectMissing:
        return f"({key} was deleted meanwhile)"
