"""Numbered records of what happened in a run: nothing is overwritten, the highest number counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from stagecoach.paths import numbered, task_record_prefix
from stagecoach.sealed import read_record, seal, unseal
from stagecoach.storage.base import ObjectStore


def write_numbered(store: ObjectStore, prefix: str, values: dict[str, Any]) -> int:
    """Write ``values`` under the next free number of ``prefix`` and return that number, from 1.

    Two writers at once get different numbers.
    """
    data = seal(values)
    number = last_number(store, prefix) + 1
    while not store.put_if_absent(numbered(prefix, number), data, content_type="application/json"):
        number += 1
    return number


def last_number(store: ObjectStore, prefix: str) -> int:
    """Return the highest number under ``prefix``, 0 if there is none."""
    return max(record_keys(store, prefix), default=0)


def read_numbered(store: ObjectStore, prefix: str) -> dict[int, dict[str, Any]]:
    """Return every record under ``prefix`` by its number, in ascending order."""
    return {number: read_sealed(store, key) for number, key in record_keys(store, prefix).items()}


def read_sealed(store: ObjectStore, key: str) -> dict[str, Any]:
    """Return one record; raises as ``read_record`` does."""
    return read_record(store, key, unseal)


def record_keys(store: ObjectStore, prefix: str) -> dict[int, str]:
    """Return the key of every record under ``prefix`` by its number, in ascending order."""
    return dict(sorted(_numbers(store, prefix)))


def write_record(store: ObjectStore, run_id: str, task: str, values: dict[str, Any]) -> int:
    """Write one record of a task of a run, with the time, and return its number."""
    return write_numbered(store, task_record_prefix(run_id, task), {"unix_seconds": round(time.time(), 3), **values})


def _numbers(store: ObjectStore, prefix: str) -> Iterator[tuple[int, str]]:
    for info in store.list(prefix):
        stem, dot, suffix = info.key.removeprefix(prefix).partition(".")
        if dot and suffix == "json" and stem.isdecimal():
            yield int(stem), info.key
