"""The failing S3 proxy in a process of its own, so that the worker that forks stages has no threads."""

from __future__ import annotations

import multiprocessing
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tests.faults.campaign.cases import STREAM
from tests.faults.campaign.small_parts import SmallParts
from tests.faulty_s3 import Answer, FaultKind, Request, faulty_s3

FAULTS: dict[str, tuple[FaultKind, ...]] = {
    "S3 answers 5xx": ("500", "503", "429"),
    "S3 hangs": ("hang",),
    "S3 cuts connections": ("refuse", "lost"),
    "S3 truncates": ("truncate",),
    "S3 lies about length": ("too-long", "too-short"),
    "S3 is slow": ("slow",),
    "S3 denies": ("403",),
    STREAM: ("500", "503", "429", "refuse", "lost"),
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

    def fails(self, request: Request) -> bool:
        """Whether this request fails."""
        at = request.number - self.first
        return (
            at >= 0
            and at // (self.burst + self.again_after) < self.bursts
            and (at % (self.burst + self.again_after) < self.burst)
        )


@dataclass
class StreamOutage:
    """Every try of one request of an upload in parts fails, and what else is asked meanwhile; then all is well again."""

    step: str
    """A key of ``STEPS``."""
    number: int
    """The how manieth request of that step it is, tries not counted."""
    tries: int
    """How often the client asks before it gives up."""
    alone: bool
    """Whether other requests get through meanwhile."""
    _seen: list[str] = field(default_factory=list)

    STEPS: ClassVar = {"begin": r"POST .*\?uploads", "part": r"PUT .*partNumber=", "complete": r"POST .*uploadId="}

    @classmethod
    def of(cls, rng: random.Random, objects_parts: list[int], tries: int) -> StreamOutage:
        """Draw one; ``objects_parts`` has the number of parts of each object that goes in parts."""
        step = rng.choice(tuple(cls.STEPS))
        last = sum(objects_parts) if step == "part" else len(objects_parts)
        return cls(step, rng.randint(1, last), tries, rng.random() < 0.5)

    def fails(self, request: Request) -> bool:
        """Whether this request fails; called for one request after the other."""
        if len(self._seen) < self.number:
            if request.path in self._seen or not re.match(self.STEPS[self.step], f"{request.method} {request.path}"):
                return False
            self._seen.append(request.path)
            if len(self._seen) < self.number:
                return False
        is_it = request.path == self._seen[-1]
        fails = self.tries > 0 and (is_it or not self.alone)
        self.tries -= is_it
        return fails


@contextmanager
def failing_proxy(upstream_url: str, kind: str, rng: random.Random, plot: Plot | StreamOutage) -> Iterator[Proxy]:
    """Run a proxy that does what ``kind`` says to the requests of the plot."""
    choices = [rng.choice(FAULTS[kind]) for _ in range(64)]
    answer = SmallParts(upstream_url) if kind == STREAM else None

    def fault_of(request: Request) -> FaultKind | None:
        return choices[request.number % 64] if plot.fails(request) else None

    with _proxy(upstream_url, fault_of, answer) as proxy:
        yield proxy


@contextmanager
def counting_proxy(upstream_url: str) -> Iterator[Proxy]:
    """Run a proxy that only counts."""
    with _proxy(upstream_url, lambda request: None) as proxy:
        yield proxy


@contextmanager
def _proxy(
    upstream_url: str, fault_of: Callable[[Request], FaultKind | None], answer: Answer | None = None
) -> Iterator[Proxy]:
    context = multiprocessing.get_context("fork")
    hits, requests = context.Value("i", 0), context.Value("i", 0)
    receiving, sending = context.Pipe(duplex=False)

    def script(request: Request) -> FaultKind | None:
        with hits.get_lock():
            requests.value = max(requests.value, request.number)
            fault = fault_of(request)
            hits.value += fault is not None
        return fault

    def serve() -> None:
        with faulty_s3(upstream_url, script, answer) as proxy:
            sending.send(proxy.endpoint_url)
            threading.Event().wait()

    process = context.Process(target=serve, daemon=True)
    process.start()
    try:
        yield Proxy(receiving.recv(), hits, requests)
    finally:
        process.kill()
        process.join()
