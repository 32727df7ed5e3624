"""Reads every byte of finished outputs and compares it with what their manifests recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stagecoach.errors import CorruptObjectError, ObjectMissing
from stagecoach.manifest import BLOCK_BYTES, Digests, ObjectEntry, read_manifest
from stagecoach.stages import TASKS
from stagecoach.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One object that is not what its manifest says."""

    prefix: str
    name: str
    sentence: str


def output_prefixes(store: ObjectStore) -> Iterator[str]:
    """Yield the folder of every output, finished or not, of every kind."""
    for top in dict.fromkeys(kind.writes for kind in TASKS.values()):
        for folder in store.list_folders(f"{top}/"):
            yield f"{top}/{folder}/"


def verify_output(store: ObjectStore, prefix: str) -> list[Problem]:
    """Return every object under ``prefix`` that is missing or changed; nothing for an unfinished output."""
    try:
        manifest = read_manifest(store, prefix)
    except CorruptObjectError as error:
        return [Problem(prefix=prefix, name="manifest.json", sentence=str(error))]
    if manifest is None:
        return []
    found = ((name, _problem(store, entry)) for name, entry in manifest.objects.items())
    return [Problem(prefix=prefix, name=name, sentence=sentence) for name, sentence in found if sentence]


def _problem(store: ObjectStore, entry: ObjectEntry) -> str | None:
    info = store.head(entry.path)
    if info is None:
        return "the object is missing"
    if info.size_bytes != entry.size_bytes:
        return f"expected {entry.size_bytes} bytes, got {info.size_bytes}"
    digests = Digests()
    try:
        for start in range(0, entry.size_bytes, BLOCK_BYTES):
            digests.update(store.get_range(entry.path, start, min(BLOCK_BYTES, entry.size_bytes - start)))
    except ObjectMissing:
        return "the object is missing"
    found = digests.entry(entry.path)
    if found.sha256 == entry.sha256:
        return None
    changed = [
        index
        for index, pair in enumerate(zip(found.block_sha256, entry.block_sha256, strict=False))
        if pair[0] != pair[1]
    ]
    where = f", first in block {changed[0]}" if changed else ""
    return f"expected sha256 {entry.sha256[:12]}.., got {found.sha256[:12]}..{where}"
