"""A store that fails on purpose: wraps any other one, so that what stands on it can be tested against a bad day."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

from stagecoach.errors import StoreUnavailable
from stagecoach.storage.base import DEFAULT_CONTENT_TYPE, ObjectInfo, ObjectStore, UnfinishedUpload, Write

_T = TypeVar("_T")

Operation = Literal[
    "head", "list", "list_folders", "get", "get_range", "get_file", "put", "put_if_absent", "put_file", "create",
    "delete",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store, as a fault sees it."""

    operation: Operation
    key: str
    number: int
    """Counts the calls of the store from 1 on, over all operations."""


@dataclass(slots=True)
class Fault:
    """What goes wrong, and when.

    Example: ``Fault(when=lambda call: call.key.endswith("manifest.json"), error=killed)`` ends the test's run at the
    commit; with ``after=True`` the object is there, but nobody hears of it.
    """

    when: Callable[[Call], bool]
    error: Callable[[Call], BaseException] | None = None
    """Makes the error to raise; None raises ``StoreUnavailable``."""
    after: bool = False
    """Raise only when the operation has been done."""
    change: Callable[[bytes], bytes] | None = None
    """Changes the bytes that are read (``get``, ``get_range``, ``get_file``) instead of raising."""
    times: int = 1
    """How often it happens."""


@dataclass(slots=True)
class FaultyStore:
    """Passes every call on to ``inner`` unless a fault says otherwise; ``calls`` remembers them all."""

    inner: ObjectStore
    faults: list[Fault] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The inner store's address."""
        return self.inner.url

    @url.setter
    def url(self, value: str) -> None:
        self.inner.url = value

    def head(self, key: str) -> ObjectInfo | None:
        return self._do("head", key, lambda: self.inner.head(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(self._do("list", prefix, lambda: [*self.inner.list(prefix, start_after=start_after)]))

    def list_folders(self, prefix: str) -> Iterator[str]:
        return iter(self._do("list_folders", prefix, lambda: [*self.inner.list_folders(prefix)]))

    def get(self, key: str) -> bytes:
        return self._do("get", key, lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        return self._do("get_range", key, lambda: self.inner.get_range(key, start, size_bytes))

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        fault = self._enter("get_file", key)
        if fault is None or fault.change is None:
            self._leave(fault, lambda: self.inner.get_file(key, path, on_bytes=on_bytes))
            return
        data = fault.change(self.inner.get(key))
        path.write_bytes(data)
        if on_bytes is not None:
            on_bytes(memoryview(data))

    def local_path(self, key: str) -> Path | None:
        """None, so that every byte comes through this store."""
        return None

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        self._do("put", key, lambda: self.inner.put(key, data, content_type=content_type))

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        return self._do("put_if_absent", key, lambda: self.inner.put_if_absent(key, data, content_type=content_type))

    @contextmanager
    def create(self, key: str) -> Iterator[Write]:
        """A fault comes when all bytes are written, before or after the object has its key."""
        with ExitStack() as ends:
            yield ends.enter_context(self.inner.create(key))
            self._do("create", key, ends.pop_all().close)

    def put_file(self, key: str, path: Path) -> None:
        self._do("put_file", key, lambda: self.inner.put_file(key, path))

    def delete(self, keys: Iterable[str]) -> None:
        for key in [*keys]:
            self._do("delete", key, partial(self.inner.delete, [key]))

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        return self.inner.unfinished()

    def discard(self, upload: UnfinishedUpload) -> None:
        self.inner.discard(upload)

    def _do(self, operation: Operation, key: str, action: Callable[[], _T]) -> _T:
        fault = self._enter(operation, key)
        result = self._leave(fault, action)
        if fault is not None and fault.change is not None and isinstance(result, bytes):
            return cast(_T, fault.change(result))
        return result

    def _enter(self, operation: Operation, key: str) -> Fault | None:
        """Note the call, find the fault that it meets, and raise if that one comes before the operation."""
        with self._lock:
            call = Call(operation, key, len(self.calls) + 1)
            self.calls.append(call)
            fault = next((each for each in self.faults if each.times > 0 and each.when(call)), None)
            if fault is None:
                return None
            fault.times -= 1
        if fault.change is None and not fault.after:
            raise self._error(fault, call)
        return fault

    def _leave(self, fault: Fault | None, action: Callable[[], _T]) -> _T:
        result = action()
        if fault is not None and fault.change is None:
            raise self._error(fault, self.calls[-1])
        return result

    def _error(self, fault: Fault, call: Call) -> BaseException:
        if fault.error is not None:
            return fault.error(call)
        return StoreUnavailable(self.url, call.key, f"{call.operation} fails on purpose")


def flip_bit(position: int) -> Callable[[bytes], bytes]:
    """Return a change that flips one bit of what is read; ``position`` counts bits and wraps around."""

    def change(data: bytes) -> bytes:
        if not data:
            return data
        index, bit = divmod(position % (8 * len(data)), 8)
        return data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]

    return change
