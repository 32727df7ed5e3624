"""Reads every byte of finished outputs and checkpoints, and every record of runs and releases, and compares their digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from stagecoach.errors import CorruptObjectError, MissingInputError, ObjectMissing
from stagecoach.manifest import BLOCK_BYTES, Digests, ObjectEntry, read_manifest
from stagecoach.paths import manifest_key, numbered, release_prefix
from stagecoach.records import read_sealed
from stagecoach.releases import check_export, read_releases, release_names
from stagecoach.stages import TASKS
from stagecoach.storage.base import ObjectStore
from stagecoach_workflows.bucket.checkpoints import every_committed

_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One object that is not what its manifest says."""

    prefix: str
    name: str
    sentence: str


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
    try:
        manifest = read_manifest(store, prefix)
    except CorruptObjectError as error:
        return [Problem(prefix=prefix, name="manifest.json", sentence=str(error))]
    if manifest is None:
        return []
    seen = set() if read is None else read
    entries = {name: entry for name, entry in manifest.objects.items() if entry not in seen}
    seen.update(entries.values())
    found = ((name, _problem(store, entry)) for name, entry in entries.items())
    return [Problem(prefix=prefix, name=name, sentence=sentence) for name, sentence in found if sentence]


def verify_store(store: ObjectStore) -> Verified:
    """Check everything in the store that carries a digest, and that what each release serves is what was promoted."""
    found = Verified()
    folders = list(output_prefixes(store))
    for folder in folders:
        _read_folder(store, folder, found)
    records = [*_records(store, ("runs/", "releases/", "pushes/")), *_records(store, (f"{top}attempts/" for top in folders))]
    with ThreadPoolExecutor(_READERS) as pool:
        found.problems += [problem for problem in pool.map(lambda key: _bad_record(store, key), records) if problem]
    found.num_records = len(records)
    found.problems += _bad_releases(store)
    return found


def verify_folders(store: ObjectStore, folders: Sequence[str]) -> Verified:
    """Check these outputs, with the checkpoints of those that are trainings.

    Raises:
        MissingInputError: One of them is no finished output, nor a training with checkpoints; nothing is read then.
    """
    found = Verified()
    for folder in folders:
        if store.head(manifest_key(folder)) is None and not any(every_committed(store, folder)):
            raise MissingInputError(
                f"{store.url.rstrip('/')}/{folder}: no finished output here: its manifest.json is missing;"
                " `stagecoach show RUN` lists a run's outputs"
            )
    for folder in dict.fromkeys(folders):
        _read_folder(store, folder, found)
    return found


def _read_folder(store: ObjectStore, folder: str, found: Verified) -> None:
    """Check an output and the checkpoints below it."""
    read: set[ObjectEntry] = set()
    if store.head(manifest_key(folder)) is None:
        found.unfinished.append(folder)
    else:
        found.num_outputs += 1
        found.problems += verify_output(store, folder, read)
    for checkpoint in every_committed(store, folder):
        found.num_checkpoints += 1
        found.problems += verify_output(store, checkpoint.prefix(folder), read)


def _records(store: ObjectStore, prefixes: Iterable[str]) -> list[str]:
    return [info.key for prefix in prefixes for info in store.list(prefix) if info.key.endswith(".json")]


def _bad_record(store: ObjectStore, key: str) -> Problem | None:
    folder, _, name = key.rpartition("/")
    try:
        read_sealed(store, key)
    except CorruptObjectError as error:
        return Problem(prefix=f"{folder}/", name=name, sentence=_without_address(store, key, error))
    except ObjectMissing:
        return Problem(prefix=f"{folder}/", name=name, sentence="the object is missing")
    return None


def _without_address(store: ObjectStore, key: str, error: CorruptObjectError) -> str:
    return str(error).removeprefix(f"{store.url.rstrip('/')}/{key}: ")


def _bad_releases(store: ObjectStore) -> Iterator[Problem]:
    """Yield the newest record of each release whose export is gone or another one; damaged records are found as such."""
    for name in release_names(store):
        try:
            history = read_releases(store, name)
        except CorruptObjectError:
            continue
        newest = history.get(max(history, default=0))
        if newest is None or newest.export is None:
            continue
        try:
            check_export(store, newest.export, newest.manifest_sha256, "what it serves")
        except (CorruptObjectError, MissingInputError) as error:
            key = numbered(release_prefix(name), max(history))
            yield Problem(prefix=release_prefix(name), name=key.rpartition("/")[2], sentence=str(error))


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
