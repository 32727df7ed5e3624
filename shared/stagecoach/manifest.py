"""What a finished output is: a manifest, written last, that names every object with its size and digests.

Readers trust nothing else: without a manifest there is no output, whatever lies beside it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagecoach.errors import CorruptObjectError, ObjectMissing
from stagecoach.paths import manifest_key
from stagecoach.sealed import read_record, seal, unseal
from stagecoach.storage.base import ObjectStore

FORMAT_VERSION = 1
BLOCK_BYTES = 64 * 1024 * 1024


_SIDE_BY_SIDE_BYTES = 256 * 1024


@cache
def _hasher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="stagecoach-digest")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ObjectEntry(_Frozen):
    """One object of an output."""

    path: str
    """Full key in the store; objects of different tries may stand in one manifest."""
    size_bytes: int = Field(ge=0)
    """Exact length."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the whole object."""
    block_sha256: tuple[str, ...] = ()
    """Digest of each 64 MiB block, for reads of a range; empty if the object is a single block."""


class Manifest(_Frozen):
    """The record that makes an output complete."""

    format_version: int = FORMAT_VERSION
    """Version of this record's own form."""
    task: str
    """Name of the task that made the output."""
    key: str
    """The output's content key."""
    name: str
    """The readable part of the output's folder."""
    output_version: int
    """Version of the stage's output form."""
    objects: dict[str, ObjectEntry]
    """Every object, by the name that readers use."""
    inputs: dict[str, str] = {}
    """Folder of each input that was read, by input name."""
    config: dict[str, Any] = {}
    """The stage's whole resolved config, result and placement fields."""
    summary: dict[str, Any] = {}
    """What the stage has to say about its output: counts, choices, measured values."""
    versions: dict[str, str] = {}
    """Versions of Stagecoach, Python and the libraries that made the bytes; recorded, never part of a key."""
    timings: dict[str, float] = {}
    """Seconds by phase, and unix times of start and end; recorded, never part of a key."""
    provenance: dict[str, str] = {}
    """Run id, revision, image digest, host; recorded, never part of a key."""

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all objects."""
        return sum(entry.size_bytes for entry in self.objects.values())


class Digests:
    """Digests of bytes that come by in order: the whole object's and each 64 MiB block's.

    The first block is hashed once, as part of the whole, so that an object of a single block costs one pass; after that
    the two digests are computed side by side, as hashing releases the interpreter's lock.
    """

    def __init__(self) -> None:
        """Start with no bytes seen."""
        self._whole = hashlib.sha256()
        self._block = self._whole
        self._blocks: list[str] = []
        self._in_block = 0
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        self.size_bytes += len(view)
        while len(view) > 0:
            part = view[: BLOCK_BYTES - self._in_block]
            if self._block is self._whole:
                self._whole.update(part)
            elif len(part) < _SIDE_BY_SIDE_BYTES:
                self._whole.update(part)
                self._block.update(part)
            else:
                beside = _hasher().submit(self._block.update, part)
                self._whole.update(part)
                beside.result()
            self._in_block += len(part)
            view = view[len(part) :]
            if self._in_block == BLOCK_BYTES:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()
                self._in_block = 0

    def entry(self, path: str) -> ObjectEntry:
        """Return the record of the object under ``path`` as far as it has come by."""
        blocks = [*self._blocks, self._block.hexdigest()] if self._in_block else self._blocks
        return ObjectEntry(
            path=path,
            size_bytes=self.size_bytes,
            sha256=self._whole.hexdigest(),
            block_sha256=tuple(blocks) if len(blocks) > 1 else (),
        )


class BlockDigests:
    """Digests of the blocks alone, of bytes that come by in order: half the work where a record is checked, not made."""

    def __init__(self) -> None:
        """Start with no bytes seen."""
        self._blocks: list[str] = []
        self._block = hashlib.sha256()
        self._size_bytes = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        while len(data) > 0:
            part = data[: BLOCK_BYTES - self._size_bytes % BLOCK_BYTES]
            self._block.update(part)
            self._size_bytes += len(part)
            data = data[len(part) :]
            if self._size_bytes % BLOCK_BYTES == 0:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()

    def match(self, entry: ObjectEntry) -> bool:
        """Say whether the bytes are those of an object of several blocks."""
        blocks = [*self._blocks, self._block.hexdigest()] if self._size_bytes % BLOCK_BYTES else self._blocks
        return self._size_bytes == entry.size_bytes and tuple(blocks) == entry.block_sha256


def read_manifest(store: ObjectStore, prefix: str) -> Manifest | None:
    """Return the manifest of the output under ``prefix``, or None while there is none.

    Raises:
        CorruptObjectError: There is one, but it is no manifest of this form.
    """
    try:
        return read_record(store, manifest_key(prefix), parse_manifest)
    except ObjectMissing:
        return None


def parse_manifest(data: bytes, address: str) -> Manifest:
    """Read a manifest's bytes; ``address`` is named in the error.

    Raises:
        CorruptObjectError: The bytes are not a manifest of a form that this version reads.
    """
    try:
        manifest = Manifest.model_validate(unseal(data, address))
    except CorruptObjectError as error:
        raise CorruptObjectError(
            f"{address}: not a manifest any more ({error}); delete it to make the output again"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise CorruptObjectError(
            f"{address}: not a manifest ({where}: {problem['msg']}); delete it to make the output again"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise CorruptObjectError(
            f"{address}: expected manifest format {FORMAT_VERSION}, got {manifest.format_version}; upgrade Stagecoach"
        )
    return manifest


def commit_manifest(store: ObjectStore, prefix: str, manifest: Manifest) -> bool:
    """Write the manifest if there is none yet; True if it is ours, False if an equal run was first."""
    data = seal(json.loads(manifest.model_dump_json()))
    return store.put_if_absent(manifest_key(prefix), data, content_type="application/json")
