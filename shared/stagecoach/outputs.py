"""What a stage reads and writes: inputs that are checked before use, and an output that is complete or absent.

output = Output(store, "packed/demo-3f2a../", scratch)      objects go to packed/demo-3f2a../try-1a2b3c4d/
with output.create("train/tokens.bin") as stream: ...       hashed while they are written
output.commit(...)                                          manifest.json, last
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from io import BufferedWriter, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from stagecoach import faults
from stagecoach.errors import CorruptObjectError, MissingInputError, StoreUnavailable
from stagecoach.manifest import (
    BLOCK_BYTES,
    BlockDigests,
    Digests,
    Manifest,
    ObjectEntry,
    commit_manifest,
    read_manifest,
)
from stagecoach.paths import new_try_prefix
from stagecoach.progress import NO_PROGRESS, Progress
from stagecoach.storage.base import ObjectStore, Write

_COPY_BYTES = 4 * 1024 * 1024
_HASH_THREADS = 4
_SIDE_BY_SIDE_BYTES = 256 * 1024


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="stagecoach-write")


class _HashingWriter(RawIOBase):
    """A sequential binary stream that hashes what passes through it."""

    def __init__(self, write: Write, digests: Digests) -> None:
        super().__init__()
        self._write = write
        self._digests = digests

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _SIDE_BY_SIDE_BYTES:
            self._write(view)
            self._digests.update(view)
            return len(view)
        # On a directory this copies into the page cache, which costs as much as a digest; both leave the interpreter's lock.
        written = _writer().submit(self._write, view)
        self._digests.update(view)
        written.result()
        return len(view)


class Output:
    """The output that a stage is making; nothing of it is trusted by anybody before ``commit``."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        scratch: Path,
        progress: Progress = NO_PROGRESS,
        run_id: str | None = None,
    ) -> None:
        """Open a fresh try.

        Args:
            store: Where the output goes.
            prefix: Folder of the output, with its final slash.
            scratch: Local folder for what the stage wants to put aside.
            progress: Where ``progress`` calls go.
            run_id: The run that asked for it; None when a stage is run by hand.
        """
        self.store = store
        self.prefix = prefix
        self.scratch = scratch
        self.run_id = run_id
        self.summary: dict[str, Any] = {}
        self._try_prefix = new_try_prefix(prefix)
        self._objects: dict[str, ObjectEntry] = {}
        self._progress = progress
        scratch.mkdir(parents=True, exist_ok=True)

    @property
    def objects(self) -> Mapping[str, ObjectEntry]:
        """The objects that are in the store by now, by name."""
        return self._objects

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a new object for sequential writing; it is hashed on the way and lies in the store when the block ends.

        Nothing is stored if the block raises.
        """
        self._check_new(name)
        key, digests = self._try_prefix + name, Digests()
        # closed first: what a block that raised left in the buffer must reach nobody
        with self.store.create(key) as write, closing(_HashingWriter(write, digests)) as raw:
            stream = BufferedWriter(raw, _SIDE_BY_SIDE_BYTES)
            yield stream
            stream.flush()
        self._objects[name] = digests.entry(key)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Store a small object."""
        with self.create(name) as stream:
            stream.write(data)

    def add_file(self, name: str, path: Path) -> None:
        """Store a local file as an object; the file itself is left alone."""
        with open(path, "rb") as source, self.create(name) as stream:
            shutil.copyfileobj(source, stream, _COPY_BYTES)

    def adopt(self, name: str, entry: ObjectEntry) -> None:
        """Take an object that already lies in the store, under whatever path, into this output.

        The caller vouches for the recorded digest; readers check it again.
        """
        self._check_new(name)
        self._objects[name] = entry

    def reuse(self, name: str, size_bytes: int, sha256: str) -> bool:
        """Take the object ``name`` of an earlier, interrupted try if one has exactly these bytes, and say whether."""
        for info in self.store.list(self.prefix + "try-"):
            if info.key.removeprefix(self.prefix).split("/", 1)[1] != name or info.size_bytes != size_bytes:
                continue
            digests = Digests()
            _read_through(self.store, info.key, size_bytes, digests)
            entry = digests.entry(info.key)
            if entry.sha256 == sha256:
                self.adopt(name, entry)
                return True
        return False

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the stage is; never fails."""
        self._progress.update(done, total, note)

    def commit(self, **fields: Any) -> bool:
        """Write the manifest, last; True if it is ours, False if an equal run was first.

        Args:
            fields: The remaining fields of ``Manifest``: task, key, name, output_version, inputs, config, ..
        """
        faults.hit(faults.AFTER_LAST_OBJECT)
        manifest = Manifest(objects=dict(sorted(self._objects.items())), summary=self.summary, **fields)
        return commit_manifest(self.store, self.prefix, manifest)

    def _check_new(self, name: str) -> None:
        if name in self._objects:
            raise ValueError(f"output object {name!r}: expected a new name, got one that this try has already written")


class Input:
    """A finished output that another stage reads; every byte is checked before it is handed out."""

    def __init__(self, store: ObjectStore, prefix: str, manifest: Manifest, scratch: Path) -> None:
        """Wrap a committed manifest; use ``open_input`` to find it."""
        self.store = store
        self.prefix = prefix
        self.manifest = manifest
        self._scratch = scratch
        self._checked: dict[str, Path] = {}

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage that made it had to say."""
        return self.manifest.summary

    def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        return sorted(self.manifest.objects)

    def entry(self, name: str) -> ObjectEntry:
        """Return the record of one object.

        Raises:
            MissingInputError: The manifest has no object of that name.
        """
        if name not in self.manifest.objects:
            raise MissingInputError(
                f"{self.store.url.rstrip('/')}/{self.prefix}: expected an object {name!r},"
                f" its manifest lists {', '.join(self.names())[:300]}"
            )
        return self.manifest.objects[name]

    def path(self, name: str) -> Path:
        """Return a local file with the object's bytes, checked; for a directory store its own file, not to be changed.

        Raises:
            CorruptObjectError: Size or digest differ from the manifest.
        """
        if name not in self._checked:
            self._checked[name] = self._check(name, self.entry(name))
        return self._checked[name]

    def read_bytes(self, name: str) -> bytes:
        """Return a whole small object, checked."""
        return self.path(name).read_bytes()

    def _check(self, name: str, entry: ObjectEntry) -> Path:
        local = self.store.local_path(entry.path)
        if local is not None and entry.block_sha256 and _blocks_are_equal(local, entry):
            return local
        fetched_by_block = local is None and bool(entry.block_sha256)
        if fetched_by_block:
            blocks = BlockDigests()
            self.store.get_file(entry.path, self._scratch_path(name), on_bytes=blocks.update)
            if blocks.match(entry):
                return self._scratch_path(name)
        # bytes that were damaged on their way are right the second time; what is damaged in the store stays so
        for _ in range(1 if fetched_by_block else 2):
            path, found = self._read(name, entry)
            if (found.size_bytes, found.sha256) == (entry.size_bytes, entry.sha256):
                return path
        info = self.store.head(entry.path)
        if found.size_bytes != entry.size_bytes and info is not None and info.size_bytes == entry.size_bytes:
            raise StoreUnavailable(
                self.store.url,
                entry.path,
                f"the store gives {found.size_bytes} of {entry.size_bytes} bytes; run again later",
            )
        raise CorruptObjectError(
            f"{self.store.url.rstrip('/')}/{entry.path}: expected {entry.size_bytes} bytes with sha256"
            f" {entry.sha256[:12]}.., got {found.size_bytes} bytes with {found.sha256[:12]}..;"
            f" delete {self.prefix}manifest.json to make the output again"
        )

    def _read(self, name: str, entry: ObjectEntry) -> tuple[Path, ObjectEntry]:
        """Return a local file with the object's bytes and the record of what it holds."""
        digests = Digests()
        path = self.store.local_path(entry.path)
        if path is not None:
            _read_through(self.store, entry.path, entry.size_bytes, digests)
        else:
            path = self._scratch_path(name)
            self.store.get_file(entry.path, path, on_bytes=digests.update)
        return path, digests.entry(entry.path)

    def _scratch_path(self, name: str) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch / (self.prefix.replace("/", "__") + name.replace("/", "__"))


def open_input(store: ObjectStore, prefix: str, scratch: Path) -> Input:
    """Return the finished output under ``prefix``.

    Raises:
        MissingInputError: It has no manifest, so it is not finished.
    """
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise MissingInputError(
            f"{store.url.rstrip('/')}/{prefix}: no finished output here (no manifest.json); run the stage that makes it"
        )
    return Input(store, prefix, manifest, scratch)


def input_key(source: Input) -> str:
    """Return what stands for an input in the key of what is made from it: its key, and for a part of an output (a
    checkpoint of a training) where in it that lies, as another part under the same key holds other bytes.
    """
    key = source.manifest.key
    _, found, part = source.prefix.rstrip("/").partition(f"-{key}/")
    return f"{key}/{part}" if found else key


def _blocks_are_equal(path: Path, entry: ObjectEntry) -> bool:
    """Compare a local file with its block digests, several blocks at a time: faster than one digest of the whole."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False

    def digest(number: int) -> str:
        found, left = hashlib.sha256(), BLOCK_BYTES
        with open(path, "rb", buffering=0) as stream:
            stream.seek(number * BLOCK_BYTES)
            while left and (chunk := stream.read(min(_COPY_BYTES, left))):
                found.update(chunk)
                left -= len(chunk)
        return found.hexdigest()

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return tuple(pool.map(digest, range(len(entry.block_sha256)))) == entry.block_sha256


def _read_through(store: ObjectStore, key: str, size_bytes: int, digests: Digests) -> None:
    """Feed an object's bytes to ``digests``: a local file by itself, anything else in ranges of one block."""
    path = store.local_path(key)
    if path is not None:
        with open(path, "rb", buffering=0) as stream:
            while chunk := stream.read(_COPY_BYTES):
                digests.update(chunk)
        return
    for start in range(0, size_bytes, BLOCK_BYTES):
        digests.update(store.get_range(key, start, min(BLOCK_BYTES, size_bytes - start)))
