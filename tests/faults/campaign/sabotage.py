"""What a child does to itself before its stage starts: kills at a chosen object, a clock that jumps, quick retries."""

from __future__ import annotations

import importlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import stagecoach.contract
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore, Write
from stagecoach.storage.open import split_s3_url
from stagecoach.storage.s3 import S3Store
from stagecoach.storage.s3_options import S3Options
from stagecoach.storage.transfer import RetryPolicy

_CONTRACT = vars(stagecoach.contract)
S3_TRIES = 6
"""How often a quick S3 store makes a request before it gives up."""
WRITES = ("put", "put_if_absent", "put_file", "delete")


class Wrapped:
    """A store that counts its writes and does something before or after one of them; all else passes through."""

    def __init__(self, inner: ObjectStore, before: Callable[[int, str], None], after: Callable[[int, str], None]):
        """``before`` and ``after`` get the number of the write, from 1, and its first key."""
        self.inner = inner
        self._before = before
        self._after = after
        self._number = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Whatever does not write."""
        method = getattr(self.inner, name)
        if name == "create":
            return self._create
        if name not in WRITES:
            return method

        def write(keys: str | Iterable[str], *arguments: Any, **named: Any) -> Any:
            given = keys if isinstance(keys, str) else list(keys)
            if "/logs/" in given:
                return method(given, *arguments, **named)  # comes by the clock: a seed would not be a case
            number = self._next_number()
            first = given if isinstance(given, str) else (given[0] if given else "")
            self._before(number, first)
            result = method(given, *arguments, **named)
            self._after(number, first)
            return result

        return write

    @contextmanager
    def _create(self, key: str) -> Iterator[Write]:
        """Pass an object through; before its write means when all its bytes are sent and it has no key."""
        with ExitStack() as ends:
            yield ends.enter_context(self.inner.create(key))
            number = self._next_number()
            self._before(number, key)
            ends.pop_all().close()
            self._after(number, key)

    def _next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number


def wrap_stores(wrap: Callable[[ObjectStore], Any]) -> None:
    """Put something around every store that this process's stage opens from now on."""
    opened = _CONTRACT["open_store"]
    _CONTRACT["open_store"] = lambda url, settings: wrap(opened(url, settings))


def count_writes(counter: Path) -> None:
    """Leave the keys of all writes, a line each, in a file."""

    def note(number: int, key: str) -> None:
        with open(counter, "a", encoding="utf-8") as file:
            file.write(f"{key}\n")

    wrap_stores(lambda store: Wrapped(store, lambda number, key: None, note))


def kill_at_write(number: int, *, after: bool) -> None:
    """Kill this process group at its n-th write, before or after it is done."""

    def die(count: int, key: str) -> None:
        if count == number:
            os.killpg(0, signal.SIGKILL)

    def live(count: int, key: str) -> None:
        return

    wrap_stores(lambda store: Wrapped(store, live if after else die, die if after else live))


def kill_at_manifest(moment: str, key: str) -> None:
    """Kill this process group while it commits ``key``: before, before or after the link, or after the commit."""

    def die(count: int, written: str) -> None:
        if written == key:
            os.killpg(0, signal.SIGKILL)

    def live(count: int, written: str) -> None:
        return

    if moment in ("before", "after"):
        before = moment == "before"
        wrap_stores(lambda store: Wrapped(store, die if before else live, live if before else die))
        return
    link = os.link

    def linking(source: Any, target: Any, **named: Any) -> None:
        if str(target).endswith(key) and moment == "before the link":
            os.killpg(0, signal.SIGKILL)
        link(source, target, **named)
        if str(target).endswith(key):
            os.killpg(0, signal.SIGKILL)

    vars(os)["link"] = linking


def jump_clock(rng: random.Random) -> None:
    """Let the wall clock jump, at once and from time to time, by up to years in both directions."""
    real = time.time
    offsets = [rng.choice((-1, 1)) * 10 ** rng.uniform(0, 8.5) for _ in range(6)]
    calls = [rng.randrange(0, 30)]

    def jumping() -> float:
        calls[0] += 1
        return max(1.0, real() + offsets[(calls[0] // 7) % len(offsets)])

    vars(time)["time"] = jumping


def quick_s3(read_timeout_seconds: float, part_bytes: int = 16 * 1024 * 1024) -> None:
    """Let S3 stores lose patience sooner, so that a case takes seconds, and cut objects into smaller parts."""

    def open_quick(url: str, settings: Settings) -> S3Store:
        bucket, prefix = split_s3_url(url)
        options = S3Options(
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            addressing="path",
            read_timeout_seconds=read_timeout_seconds,
            part_bytes=part_bytes,
            retry=RetryPolicy(max_tries=S3_TRIES, first_pause_seconds=0.02, longest_pause_seconds=0.2),
        )
        return S3Store(bucket, prefix, options)

    _CONTRACT["open_store"] = open_quick


def small_blocks(size_bytes: int) -> None:
    """Let bytes reach the store in blocks of that size, as the micro run's objects are smaller than one real block."""
    for module, name in (("stagecoach.outputs", "_SIDE_BY_SIDE_BYTES"), ("stagecoach_download.sources", "READ_BYTES")):
        settings = vars(importlib.import_module(module))
        assert name in settings, f"{module} has no {name} any more"
        settings[name] = size_bytes
