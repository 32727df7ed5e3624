"""The training's numbers: one JSON line a record, stored in chunks by attempt; a console line; TensorBoard and W&B if
asked.

    metrics/attempt-0001-000001.jsonl
        {"kind": "start", "attempt": 1, "step": 0, "steps": 760, ..}
        {"kind": "step", "step": 1, "loss": 2.31, "lr": 2e-07, "grad_norm": 1.7, "tokens": 15210, "targets": 7331, ..}
        {"kind": "step", "step": 2, "skipped": true, "packs": [17, 4, ..], ..}    packs: of skipped steps only
        {"kind": "evaluation", "step": 152, "loss": 1.9, "documents": [["9f86d081884c7d65", 41.7, 22], ..], ..}
        {"kind": "checkpoint", "step": 152, "stall_seconds": 0.21, "size_bytes": 3672576, ..}

A chunk is never changed. Where several attempts hold the same step, the highest attempt counts.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from stagecoach.errors import StoreError
from stagecoach.paths import metrics_key
from stagecoach.storage.base import ObjectStore
from stagecoach_train.patience import STORE_PATIENCE_SECONDS, patiently

FLUSH_SECONDS = 30.0

_log = logging.getLogger("stagecoach.train")


class Sink(Protocol):
    """Takes every record as it comes: TensorBoard, W&B."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record."""

    def close(self, store_is_away: bool = False) -> None:
        """Finish; a store that is away is not asked for anything."""


class MetricsStream:
    """Collects records and stores them in chunks, in the background; only rank 0 has one."""

    def __init__(
        self,
        store: ObjectStore,
        trained: str,
        attempt: int,
        sinks: tuple[Sink, ...] = (),
        *,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        """Begin the stream of one attempt."""
        self._store = store
        self._trained = trained
        self._attempt = attempt
        self._sinks = sinks
        self._flush_seconds = flush_seconds
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        self._chunk = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a record; ``step`` counts the steps that are done."""
        record = {"kind": kind, "step": step, "unix_seconds": round(time.time(), 3), **values}
        with self._lock:
            self._lines.append(json.dumps(record, separators=(",", ":")))
        self._draw(lambda sink: sink.write(record))

    def _draw(self, action: Callable[[Sink], None]) -> None:
        """Do something with every sink; one that fails gets nothing more, because curves are not worth a training."""
        for sink in self._sinks:
            try:
                action(sink)
            except Exception as error:
                _log.warning("%s failed and gets no more numbers: %r", type(sink).__name__, error)
                self._sinks = tuple(other for other in self._sinks if other is not sink)

    def flush(self) -> None:
        """Store what has come together as one chunk; what comes meanwhile waits for the next, so that this ends.

        Raises:
            StoreError: It could not be stored; nothing is lost, the next call tries again.
        """
        with self._storing:
            num_left = len(self._waiting_lines())
            while num_left > 0:
                lines = self._waiting_lines()
                data = ("\n".join(lines) + "\n").encode()
                key = metrics_key(self._trained, self._attempt, self._chunk + 1)
                num_stored = len(lines)
                if not self._store.put_if_absent(key, data, content_type="application/x-ndjson"):
                    # an earlier call got through and only its answer was lost; there were fewer lines then
                    num_stored = self._store.get(key).count(b"\n")
                self._chunk += 1
                num_left -= num_stored
                with self._lock:
                    del self._lines[:num_stored]

    def _waiting_lines(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def close(self, patience_seconds: float = STORE_PATIENCE_SECONDS) -> None:
        """Store the rest, and wait that long for a store that does not answer; does nothing the second time.

        Raises:
            StoreError: It could not be stored.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        store_is_away = True
        try:
            patiently(self.flush, "the last metrics", patience_seconds)
            store_is_away = False
        finally:
            self._draw(lambda sink: sink.close(store_is_away))

    def _run(self) -> None:
        while not self._closing.wait(self._flush_seconds):
            try:
                self.flush()
            except StoreError as error:
                _log.warning("metrics not stored yet: %s", error)


def console_line(record: dict[str, Any], num_steps: int) -> str:
    """Return the line of one step for people.

    Examples:
        >>> console_line({"step": 3, "loss": 2.25, "lr": 1e-5, "grad_norm": 1.5, "targets_per_second": 900.0,
        ...               "tokens_per_second": 2000.0, "data_wait_seconds": 0.001, "skipped": False}, 760)
        'step 3/760  loss 2.2500  lr 1.00e-05  grad norm 1.500  900 targets/s  2,000 tokens/s  data wait 1 ms'
    """
    parts = [
        f"step {record['step']}/{num_steps}",
        f"loss {record['loss']:.4f}",
        f"lr {record['lr']:.2e}",
        f"grad norm {record['grad_norm']:.3f}",
        f"{record['targets_per_second']:,.0f} targets/s",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("memory_gib") is not None:
        parts.append(f"memory {record['memory_gib']:.1f} GiB")
    parts.append(f"data wait {record['data_wait_seconds'] * 1000:.0f} ms")
    if record["skipped"]:
        parts.append("SKIPPED: gradient not finite")
    return "  ".join(parts)


FlattenedScalars = Iterator[tuple[str, float]]


def scalars(record: dict[str, Any]) -> FlattenedScalars:
    """Yield the plain numbers of a record as ``kind/name``, for tools that draw curves."""
    for name, value in record.items():
        if name in ("kind", "step", "unix_seconds") or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield f"{record['kind']}/{name}", float(value)
        elif isinstance(value, dict):
            yield from (
                (f"{record['kind']}/{name}/{key}", float(part))
                for key, part in value.items()
                if isinstance(part, int | float)
            )


class CurveSink:
    """Hands each record's plain numbers to a tool that draws curves."""

    def __init__(self, add: Callable[[str, float, int], None], finish: Callable[[], None]) -> None:
        """Take ``add(name, value, step)`` and ``finish()`` of the tool."""
        self._add = add
        self._finish = finish

    def write(self, record: dict[str, Any]) -> None:
        """Draw the record's numbers."""
        for name, value in scalars(record):
            self._add(name, value, int(record["step"]))

    def close(self, store_is_away: bool = False) -> None:
        """Finish the tool's files."""
        self._finish()
