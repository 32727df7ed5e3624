"""The failing S3 proxy in a process of its own, so that the worker that forks stages has no threads."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.faults.campaign.cases import STREAM, STREAM_STEPS
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
    """Every try of one request of an object's upload in parts fails, and all is well again; then of another one.

    The steps are the upload's beginning, a part in its middle and its completion: only a failure of the last one could
    never leave a hole in the object.
    """

    name: str
    """Last part of the object's key; the first upload of such an object that gets so far is meant."""
    part: int
    """Number of the part, from 1."""
    tries: int
    """How often the client asks before it gives up."""
    alone: bool
    """Whether other requests get through meanwhile."""
    _path: str = ""
    _left: int = 0
    _begun: int = 0

    @classmethod
    def of(cls, rng: random.Random, objects_parts: dict[str, int], tries: int) -> StreamOutage:
        """Draw one; ``objects_parts`` has the number of parts of each object by its name, and one has more than two."""
        name = rng.choice(sorted(name for name, parts in objects_parts.items() if parts > 2))
        part = rng.randint(2, objects_parts[name] - 1)
        return cls(name.rpartition("/")[2], part, tries, rng.random() < 0.5)

    def fails(self, request: Request) -> bool:
        """Whether this request fails; called for one request after the other."""
        if not self._left:
            if self._begun == STREAM_STEPS or not self._is_next(request):
                return False
            self._begun += 1
            self._path, self._left = f"{request.method} {request.path}", self.tries
        is_it = f"{request.method} {request.path}" == self._path
        self._left -= is_it
        return is_it or not self.alone

    def _is_next(self, request: Request) -> bool:
        method, query = (("POST", "uploads"), ("PUT", f"partNumber={self.part}&"), ("POST", "uploadId="))[self._begun]
        name, _, asked = request.path.rpartition("/")[2].partition("?")
        return (request.method, name) == (method, self.name) and asked.startswith(query)


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
