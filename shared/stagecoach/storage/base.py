"""The protocol that every object store follows, with its promises: directory, memory and S3 stand in for each other.

A store maps keys to immutable bytes. Keys look like relative paths; folders exist only as parts of keys. The promises:

- A reader sees a whole object or none: nothing half-written ever has a key.
- When a ``put`` returns, the object survives a crash of this process and of the machine (memory: of neither).
- ``put_if_absent`` on one key from any number of processes returns True to exactly one of them.
- ``list`` is in the order of the keys' UTF-8 bytes, and sees every ``put`` that returned before it began.
- Errors are branches of ``StoreError`` that name store and key; ``ConfigError`` where a key can never be valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stagecoach.errors import ConfigError

MAX_KEY_BYTES = 900
MAX_PART_BYTES = 255
DEFAULT_CONTENT_TYPE = "application/octet-stream"

Write = Callable[[bytes | memoryview], None]
"""Takes the next bytes of an object; it does not keep the view."""


class Writing:
    """A ``Write`` that fails for good once it failed, so that no object can have a hole where an error was passed over."""

    def __init__(self, write: Write) -> None:
        """Pass everything on to ``write``."""
        self._write = write
        self._error: BaseException | None = None

    def __call__(self, data: bytes | memoryview) -> None:
        """Write, or raise what went wrong before."""
        self.check()
        try:
            self._write(data)
        except BaseException as error:
            self._error = error
            raise

    def check(self) -> None:
        """Raise what went wrong in an earlier write, if anything did."""
        if self._error is not None:
            raise self._error


_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows about an object without reading it."""

    key: str
    """Key in the store."""
    size_bytes: int
    """Exact length."""
    etag: str
    """Changes when the bytes change; comparable within one store only."""
    modified_unix_seconds: float
    """Time of the last put, on the store's own clock."""


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """Bytes that an interrupted put has left behind; they have no key, so nothing else finds them."""

    key: str
    """Key that the object would have got; empty where the store does not know."""
    upload_id: str
    """Handle for ``discard``."""
    started_unix_seconds: float
    """When the put began or, in a directory, wrote last."""


class ObjectStore(Protocol):
    """An object store; see the module for what all of them promise. Safe to use from several threads."""

    url: str
    """Address without credentials: ``file:///x``, ``s3://bucket/prefix``, ``memory://name``."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return what the store knows about one object, None if there is none."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix`` and is greater than ``start_after``, in UTF-8 order.

        ``prefix`` is a plain string: ``runs/2026`` or the empty one. What comes or goes meanwhile may be missed.
        """
        ...

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Yield the names, without any slash, of the folders that lie directly in ``prefix`` and hold objects.

        ``prefix`` is empty or ends with a slash: ``list_folders("runs/")`` yields run ids. In order of UTF-8 bytes of
        ``name/``. What lies below them is not listed, so only the number of folders costs time. Some S3 servers
        go on naming a folder for a while after its last object was deleted.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return a whole small object.

        Raises:
            ObjectMissing: There is none.
        """
        ...

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """Return exactly the bytes ``start`` (included) to ``start + size_bytes`` (excluded).

        Raises:
            ObjectMissing: There is no such object.
            CorruptObjectError: It ends before.
        """
        ...

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        """Copy a whole object to a local file, which is complete when it appears under ``path``.

        Args:
            key: The object.
            path: The file; its folder must exist, and what it held is replaced.
            on_bytes: Sees all bytes once and in order; it must not keep the view. On an error it may have seen some.

        Raises:
            ObjectMissing: There is no such object.
            CorruptObjectError: It changed while it was read.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds an object, to be read or mapped and never changed; None where there are no files.

        Raises:
            ObjectMissing: There could be such a file, but there is none.
        """
        ...

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """Store an object, replacing what was there; only for trackers and heartbeats."""
        ...

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        """Store an object unless the key is taken.

        Returns:
            True if the key now holds what this call wrote, False if it already held an object.
        """
        ...

    def create(self, key: str) -> AbstractContextManager[Write]:
        """Write an object piece by piece, without a copy elsewhere, under a key that is new (of a fresh ``try-`` folder).

        The object is there, whole, when the block ends; if the block raises, or a write failed and the block went on,
        there is none. What a killed process leaves is ``unfinished``. Memory stays below some parts of the object.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Store a local file under a key that is new; the file is left alone."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in no order; keys without an object are fine."""
        ...

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        """Yield what interrupted puts have left behind, and puts that run just now: look at their age."""
        ...

    def discard(self, upload: UnfinishedUpload) -> None:
        """Delete what an interrupted put has left behind; one that is gone is fine."""
        ...


def validate_key(key: str) -> str:
    """Return ``key`` if every store can hold it.

    Raises:
        ConfigError: It is empty, absolute or longer than 900 bytes, has an empty part, ``.``, ``..`` or a part longer
            than 255 bytes, a control character, a backslash or half a surrogate pair.
    """
    last = key.rsplit("/", 1)[-1]
    problem = _problem(key) or ("it has an empty part" if not last else None)
    if last in (".", ".."):
        problem = "it has a part '.' or '..'"
    if problem:
        raise ConfigError(
            f"object key: expected a relative path such as runs/x/plan.json, got {key[:200]!r}:"
            f" {problem}; choose another name"
        )
    return key


def validate_prefix(prefix: str) -> str:
    """Return ``prefix`` if keys can begin with it; it may be empty, end within a name or with a slash.

    Raises:
        ConfigError: No valid key begins with it.
    """
    problem = _problem(prefix)
    if problem:
        raise ConfigError(
            f"object prefix: expected the beginning of a relative path, got {prefix[:200]!r}:"
            f" {problem}; choose another name"
        )
    return prefix


def validate_folder(prefix: str) -> str:
    """Return ``prefix`` if it is empty or a folder with its final slash.

    Raises:
        ConfigError: It is neither.
    """
    if prefix and not prefix.endswith("/"):
        raise ConfigError(f"object folder: expected '' or a prefix that ends with '/', got {prefix[:200]!r}")
    return validate_prefix(prefix)


def utf8_order(text: str) -> bytes:
    """Sort key that orders strings as S3 orders keys: by their UTF-8 bytes."""
    return text.encode("utf-8", "surrogatepass")


def _problem(text: str) -> str | None:
    parts = text.split("/")
    if text.startswith("/"):
        return "it begins with a slash"
    if "" in parts[:-1]:
        return "it has an empty part"
    if ".." in parts[:-1] or "." in parts[:-1]:
        return "it has a part '.' or '..'"
    if _FORBIDDEN.search(text):
        return "it has a control character or a backslash"
    if len(text.encode()) > MAX_KEY_BYTES:
        return f"it is longer than {MAX_KEY_BYTES} bytes"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    return None
