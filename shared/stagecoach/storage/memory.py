"""A store in this process's memory: what tests use, with the same promises as the others but durability."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stagecoach.errors import CorruptObjectError, ObjectMissing
from stagecoach.storage.base import (
    DEFAULT_CONTENT_TYPE,
    ObjectInfo,
    UnfinishedUpload,
    Write,
    Writing,
    utf8_order,
    validate_folder,
    validate_key,
    validate_prefix,
)
from stagecoach.storage.transfer import new_local_file


class MemoryStore:
    """Objects in a dictionary, behind one lock."""

    def __init__(self, name: str = "") -> None:
        """Make an empty store; its address is ``memory://name``."""
        self.url = f"memory://{name}"
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}

    def head(self, key: str) -> ObjectInfo | None:
        """See ``ObjectStore.head``."""
        with self._lock:
            found = self._objects.get(validate_key(key))
        return found[1] if found else None

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list``; the listing is of the moment at which the first object is asked for."""
        validate_prefix(prefix)
        after = utf8_order(start_after)
        with self._lock:
            infos = [info for key, (_, info) in self._objects.items() if key.startswith(prefix)]
        yield from sorted((i for i in infos if utf8_order(i.key) > after), key=lambda info: utf8_order(info.key))

    def list_folders(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list_folders``."""
        validate_folder(prefix)
        with self._lock:
            rests = [key[len(prefix) :] for key in self._objects if key.startswith(prefix)]
        names = {rest.split("/")[0] for rest in rests if "/" in rest}
        yield from sorted(names, key=lambda name: utf8_order(f"{name}/"))

    def get(self, key: str) -> bytes:
        """See ``ObjectStore.get``."""
        with self._lock:
            found = self._objects.get(validate_key(key))
        if found is None:
            raise ObjectMissing(self.url, key, "no such object")
        return found[0]

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        data = self.get(key)[start : start + size_bytes]
        if len(data) != size_bytes:
            raise CorruptObjectError(
                f"{self.url}/{key}: expected {size_bytes} bytes from byte {start} on, the object ends after {len(data)}"
            )
        return data

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        """See ``ObjectStore.get_file``."""
        data = self.get(key)
        if on_bytes is not None:
            on_bytes(memoryview(data))
        with new_local_file(path) as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    def local_path(self, key: str) -> Path | None:
        """See ``ObjectStore.local_path``; always None."""
        validate_key(key)
        return None

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """See ``ObjectStore.put``."""
        entry = self._entry(key, data)
        with self._lock:
            self._objects[key] = entry

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        """See ``ObjectStore.put_if_absent``."""
        entry = self._entry(key, data)
        with self._lock:
            return self._objects.setdefault(key, entry) is entry

    @contextmanager
    def create(self, key: str) -> Iterator[Write]:
        """See ``ObjectStore.create``."""
        validate_key(key)
        data = bytearray()
        writing = Writing(data.extend)
        yield writing
        writing.check()
        self.put(key, bytes(data))

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore.put_file``."""
        self.put(key, path.read_bytes())

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore.delete``."""
        for key in keys:
            with self._lock:
                self._objects.pop(validate_key(key), None)

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        """See ``ObjectStore.unfinished``; there are none."""
        return iter(())

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``ObjectStore.discard``."""

    def _entry(self, key: str, data: bytes) -> tuple[bytes, ObjectInfo]:
        etag = hashlib.sha256(data).hexdigest()[:32]
        return bytes(data), ObjectInfo(validate_key(key), len(data), etag, time.time())


_shared: dict[str, MemoryStore] = {}
_shared_lock = threading.Lock()


def shared_memory_store(name: str) -> MemoryStore:
    """Return this process's one store of that name, so that opening ``memory://name`` twice finds the same objects."""
    with _shared_lock:
        return _shared.setdefault(name, MemoryStore(name))
