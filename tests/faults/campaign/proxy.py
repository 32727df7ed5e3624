"""The failing S3 proxy in a process of its own, so that the worker that forks stages has no threads."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.faulty_s3 import FaultKind, Request, faulty_s3

FAULTS: dict[str, tuple[FaultKind, ...]] = {
    "S3 answers 5xx": ("500", "503", "429"),
    "S3 hangs": ("hang",),
    "S3 cuts connections": ("refuse", "lost"),
    "S3 truncates": ("truncate",),
    "S3 lies about length": ("too-long", "too-short"),
    "S3 is slow": ("slow",),
    "S3 denies": ("403",),
}
"""What a case's kind does to a request."""


@dataclass
class Proxy:
    """A proxy that runs."""

    endpoint_url: str
    hits: Any
    """Number of requests that failed on purpose so far."""
    requests: Any
    """Number of all requests so far."""


@dataclass
class Plot:
    """Which requests fail: from the n-th on, so many in a row; then again after a pause, a few times."""

    first: int
    burst: int
    again_after: int
    bursts: int

    @classmethod
    def of(cls, rng: random.Random, kind: str, longest: int) -> Plot:
        """Draw one; a burst beyond the client's patience ends the stage, a short one must not."""
        burst = rng.choice((1, 2, 3, 1000)) if kind != "S3 is slow" else rng.randrange(3, 12)
        return cls(rng.randrange(1, max(2, longest)), burst, rng.randrange(2, 20), rng.randrange(1, 4))

    def fails(self, number: int) -> bool:
        """Whether the request with that number fails."""
        at = number - self.first
        return (
            at >= 0
            and at // (self.burst + self.again_after) < self.bursts
            and (at % (self.burst + self.again_after) < self.burst)
        )


@contextmanager
def failing_proxy(upstream_url: str, kind: str, rng: random.Random, plot: Plot) -> Iterator[Proxy]:
    """Run a proxy that does what ``kind`` says to the requests of the plot."""
    choices = [rng.choice(FAULTS[kind]) for _ in range(64)]
    with _proxy(upstream_url, lambda number: choices[number % 64] if plot.fails(number) else None) as proxy:
        yield proxy


@contextmanager
def counting_proxy(upstream_url: str) -> Iterator[Proxy]:
    """Run a proxy that only counts."""
    with _proxy(upstream_url, lambda number: None) as proxy:
        yield proxy


@contextmanager
def _proxy(upstream_url: str, fault_of: Callable[[int], FaultKind | None]) -> Iterator[Proxy]:
    context = multiprocessing.get_context("fork")
    hits, requests = context.Value("i", 0), context.Value("i", 0)
    receiving, sending = context.Pipe(duplex=False)

    def script(request: Request) -> FaultKind | None:
        with hits.get_lock():
            requests.value = max(requests.value, request.number)
            fault = fault_of(request.number)
            hits.value += fault is not None
        return fault

    def serve() -> None:
        with faulty_s3(upstream_url, script) as proxy:
            sending.send(proxy.endpoint_url)
            threading.Event().wait()

    process = context.Process(target=serve, daemon=True)
    process.start()
    try:
        yield Proxy(receiving.recv(), hits, requests)
    finally:
        process.kill()
        process.join()
