"""Reads the numbers that a training leaves in its metrics chunks; gate, report and model card use the same reader.

    metrics/attempt-0001-000001.jsonl    one JSON record a line: {"kind": "step" | "evaluation" | "answers" | .., "step": ..}

Where several attempts hold the same step, the highest attempt counts: records of a lower one end where the next began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stagecoach.errors import CorruptObjectError
from stagecoach.outputs import Input
from stagecoach.storage.base import ObjectStore

WORST_LOSS = 1e9
"""Nats; stands in records for a loss that is not finite, which JSON cannot say, and can still be drawn and averaged."""

_CHUNK = re.compile(r"(?:.*/)?metrics/attempt-(\d+)-(\d+)\.jsonl")


def read_metrics(store: ObjectStore, trained: str) -> Iterator[dict[str, Any]]:
    """Yield the records of the training under ``trained`` in order of attempts, also while it still runs.

    Raises:
        CorruptObjectError: A chunk holds something else than JSON records.
    """
    return merged(every_record(store, trained))


def read_finished_metrics(trained: Input) -> Iterator[dict[str, Any]]:
    """Yield the same of a finished training, every chunk checked against its manifest."""
    return merged(_all((name, trained.read_bytes(name)) for name in _ordered(trained.names())))


def every_record(store: ObjectStore, trained: str) -> list[dict[str, Any]]:
    """Return all records of all attempts, those too that a later attempt made anew; raises as ``read_metrics`` does."""
    keys = [info.key for info in store.list(f"{trained}metrics/attempt-")]
    return _all((key, store.get(key)) for key in _ordered(keys))


def merged(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the records that count."""
    begins = {int(record["attempt"]): int(record["step"]) for record in records if record["kind"] == "start"}
    for record in records:
        later = [step for attempt, step in begins.items() if attempt > record["attempt"]]
        if not later or record["step"] <= min(later):
            yield record


def newest(records: Iterable[dict[str, Any]], kind: str, step: int) -> dict[str, Any] | None:
    """Return the last record of a kind at one step, None without any."""
    found = [record for record in records if record.get("kind") == kind and record.get("step") == step]
    return found[-1] if found else None


def _ordered(keys: Iterable[str]) -> list[str]:
    matches = [match for match in map(_CHUNK.fullmatch, keys) if match]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), int(match[2])))]


def _all(chunks: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
    return [{**record, "attempt": _attempt(key)} for key, data in chunks for record in _records(key, data)]


def _attempt(key: str) -> int:
    match = _CHUNK.fullmatch(key)
    return int(match[1]) if match else 0


def _records(key: str, data: bytes) -> Iterator[dict[str, Any]]:
    try:
        for line in data.decode("utf-8").splitlines():
            record = json.loads(line)
            if not isinstance(record.get("kind"), str) or not isinstance(record.get("step"), int):
                raise ValueError("a record without kind or step")
            yield record
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptObjectError(f"{key}: expected one JSON record a line, got {error}") from error
