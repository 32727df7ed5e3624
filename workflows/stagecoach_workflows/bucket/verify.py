"""Reads every byte of finished outputs and checkpoints, and every record of runs and releases, and compares their digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stagecoach.errors import CorruptObjectError, MissingInputError, ObjectMissing
from stagecoach.manifest import BLOCK_BYTES, Digests, Manifest, ObjectEntry, parse_manifest
from stagecoach.paths import MANIFEST, manifest_key
from stagecoach.records import read_sealed, record_keys
from stagecoach.releases import check_digest, check_export, parse_release
from stagecoach.sealed import read_record
from stagecoach.stages import TASKS
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.bucket.checkpoints import Checkpoint, every_begun, every_committed

_READERS = 16
_RELEASE = re.compile(r"(releases/[^/]+/)\d+\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One object that is not what its manifest says."""

    prefix: str
    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class _ReadManifest:
    """A folder's manifest, asked for once; without a digest there is none."""

    prefix: str
    manifest: Manifest | None
    sha256: str | None
    problem: Problem | None


@dataclass(slots=True)
class Verified:
    """What was read and what is wrong with it."""

    num_outputs: int = 0
    """Finished outputs whose objects were read."""
    num_checkpoints: int = 0
    """Checkpoints of trainings, each with a manifest of its own."""
    num_records: int = 0
    """Plans and records of runs, trainings, pushes and releases."""
    unfinished: list[str] = field(default_factory=list)
    """Folders of outputs without a manifest: not made yet, or it is gone; of them nothing can be checked."""
    problems: list[Problem] = field(default_factory=list)
    """What differs."""


def output_prefixes(store: ObjectStore) -> Iterator[str]:
    """Yield the folder of every output, finished or not, of every kind."""
    for top in dict.fromkeys(kind.writes for kind in TASKS.values()):
        for folder in store.list_folders(f"{top}/"):
            yield f"{top}/{folder}/"


def verify_output(store: ObjectStore, prefix: str, read: set[ObjectEntry] | None = None) -> list[Problem]:
    """Return every object under ``prefix`` that is missing or changed; nothing for an unfinished output.

    Args:
        store: The bucket.
        prefix: The output's folder.
        read: Objects that need no reading again, to which those of this output are added: a finished training lists
            objects of its checkpoints.
    """
    return _problems(store, _read_manifest(store, prefix), set() if read is None else read)


def _problems(store: ObjectStore, found: _ReadManifest, seen: set[ObjectEntry]) -> list[Problem]:
    """Read what a manifest lists, but for what was seen; see ``verify_output``."""
    prefix, manifest = found.prefix, found.manifest
    if manifest is None:
        return [found.problem] if found.problem is not None else []
    entries = {name: entry for name, entry in manifest.objects.items() if entry not in seen}
    seen.update(entries.values())
    said = ((name, _problem(store, entry)) for name, entry in entries.items())
    problems = [Problem(prefix=prefix, name=name, sentence=sentence) for name, sentence in said if sentence]
    # a training deletes old checkpoints while this reads, and gc outputs: their manifests first
    return problems if problems and store.head(manifest_key(prefix)) is not None else []


def _read_manifest(store: ObjectStore, prefix: str) -> _ReadManifest:
    digest: str | None = None

    def parse(data: bytes, address: str) -> Manifest:
        nonlocal digest
        digest = hashlib.sha256(data).hexdigest()
        return parse_manifest(data, address)

    try:
        return _ReadManifest(prefix, read_record(store, manifest_key(prefix), parse), digest, None)
    except ObjectMissing:
        return _ReadManifest(prefix, None, None, None)
    except CorruptObjectError as error:
        return _ReadManifest(prefix, None, digest, Problem(prefix=prefix, name=MANIFEST, sentence=str(error)))


def verify_store(store: ObjectStore) -> Verified:
    """Check everything in the store that carries a digest, and that what each release serves is what was promoted."""
    found = Verified()
    folders = list(output_prefixes(store))
    digests: dict[str, str | None] = {}
    for folder in folders:
        manifest = _read_manifest(store, folder)
        digests[folder] = manifest.sha256
        _read_folder(store, manifest, every_begun(store, folder), found)
    keys = [
        *_record_keys(store, ("runs/", "releases/", "pushes/")),
        *_record_keys(store, (f"{top}attempts/" for top in folders)),
    ]
    found.num_records = len(keys)
    newest = _newest_releases(keys)
    serving: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        # a store has as many records as it had runs: their values would fill the memory
        for key, record in zip(keys, pool.map(lambda key: _record(store, key, key in newest), keys), strict=True):
            if isinstance(record, Problem):
                found.problems.append(record)
            elif record is not None:
                serving[key] = record
    found.problems += _bad_releases(store, serving, digests)
    return found


def verify_folders(store: ObjectStore, folders: Sequence[str]) -> Verified:
    """Check these outputs, with the checkpoints of those that are trainings.

    Raises:
        MissingInputError: One of them is no finished output, nor a training with checkpoints; no object is read then.
    """
    found = Verified()
    manifests = {folder: _read_manifest(store, folder) for folder in folders}
    for folder, manifest in manifests.items():
        if manifest.sha256 is None and not any(every_committed(store, folder)):
            raise MissingInputError(
                f"{store.url.rstrip('/')}/{folder}: no finished output here: its manifest.json is missing;"
                " `stagecoach show RUN` lists a run's outputs"
            )
    for folder, manifest in manifests.items():
        _read_folder(store, manifest, every_begun(store, folder), found)
    return found


def _read_folder(
    store: ObjectStore, manifest: _ReadManifest, checkpoints: Iterable[Checkpoint], found: Verified
) -> None:
    """Check an output and the checkpoints below it."""
    read: set[ObjectEntry] = set()
    if manifest.sha256 is None:
        found.unfinished.append(manifest.prefix)
    else:
        found.num_outputs += 1
        found.problems += _problems(store, manifest, read)
    for checkpoint in checkpoints:
        below = _read_manifest(store, checkpoint.prefix(manifest.prefix))
        if below.sha256 is not None:
            found.num_checkpoints += 1
            found.problems += _problems(store, below, read)


def _record_keys(store: ObjectStore, prefixes: Iterable[str]) -> list[str]:
    return [info.key for prefix in prefixes for info in store.list(prefix) if info.key.endswith(".json")]


def _record(store: ObjectStore, key: str, is_kept: bool) -> dict[str, Any] | Problem | None:
    try:
        values = read_sealed(store, key)
    except CorruptObjectError as error:
        return _bad(key, str(error).removeprefix(f"{_address(store, key)}: "))
    except ObjectMissing:
        return _bad(key, "the object is missing")
    return values if is_kept else None


def _bad(key: str, sentence: str) -> Problem:
    folder, _, name = key.rpartition("/")
    return Problem(prefix=f"{folder}/", name=name, sentence=sentence)


def _address(store: ObjectStore, key: str) -> str:
    return f"{store.url.rstrip('/')}/{key}"


def _newest_releases(keys: Iterable[str]) -> set[str]:
    newest: dict[str, str] = {}
    for key in keys:
        numbers = _RELEASE.fullmatch(key)
        if numbers:
            newest[numbers[1]] = max(key, newest.get(numbers[1], key), key=lambda each: (len(each), each))
    return set(newest.values())


def _bad_releases(
    store: ObjectStore, serving: Mapping[str, dict[str, Any]], digests: Mapping[str, str | None]
) -> Iterator[Problem]:
    """Yield the newest record of each release whose export is gone or another one; damaged records are found as such."""
    for key, values in serving.items():
        try:
            release = parse_release(values, _address(store, key))
            if release.export is not None:
                found = digests.get(release.export)
                check_digest(store, release.export, found, release.manifest_sha256, "what it serves")
        except (CorruptObjectError, MissingInputError):
            # hours may lie between the digests and the records: a run may have promoted what it made meanwhile
            yield from _bad_release_now(store, key)


def _bad_release_now(store: ObjectStore, key: str) -> Iterator[Problem]:
    """Yield what is wrong with the newest record in the folder of ``key``, which may be another one by now."""
    newest = max(record_keys(store, f"{key.rpartition('/')[0]}/").items(), default=(0, key))[1]
    try:
        release = parse_release(read_sealed(store, newest), _address(store, newest))
        if release.export is not None:
            check_export(store, release.export, release.manifest_sha256, "what it serves")
    except (CorruptObjectError, MissingInputError) as error:
        yield _bad(newest, str(error).removeprefix(f"{_address(store, newest)}: "))


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
