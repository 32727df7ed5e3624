"""The releases of a named model: numbered records of what was offered, of which the highest counts.

    releases/assistant/0001.json    {outcome: promoted,    candidate: exports/a-.., export: exports/a-..}
                       0002.json    {outcome: refused,     candidate: exports/b-.., export: exports/a-.., reasons: [..]}
                       0003.json    {outcome: promoted,    candidate: exports/c-.., export: exports/c-..}
                       0004.json    {outcome: rolled back, candidate: exports/c-.., export: exports/a-..}
                       heldout/<folder of an export>.json    what the gate compares (see ``Evidence``)

``export`` is what serves after that record, so a reader needs the newest record alone. A record is written under the
number that follows the history it was decided on, by conditional put: of two writers one sees that it was late, and
decides again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stagecoach.errors import CorruptObjectError, MissingInputError, ObjectMissing
from stagecoach.paths import is_name, manifest_key, numbered, release_prefix, validate_name
from stagecoach.records import read_sealed, record_keys
from stagecoach.sealed import seal
from stagecoach.storage.base import ObjectStore

Outcome = Literal["promoted", "refused", "rolled back"]
_READERS = 16
_log = logging.getLogger("stagecoach.releases")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class Release(_Frozen):
    """One record of a release's history."""

    format_version: int = 1
    """Version of this record's own form."""
    outcome: Outcome
    """What happened."""
    candidate: str
    """Folder of the export that was offered, or that a rollback took away."""
    export: str | None
    """Folder of the export that serves from now on; None while nothing was ever promoted."""
    manifest_sha256: str | None = None
    """Digest of that export's manifest.json, so that the pointer names bytes and not only a place."""
    reasons: tuple[str, ...] = ()
    """Why it was refused, or who rolled back and why."""
    gate: dict[str, Any] = {}
    """The gate's settings when it was offered."""
    comparison: dict[str, Any] = {}
    """What the gate found: losses on the common documents, their number, right answers."""
    run_id: str | None = None
    """The run that made the candidate."""
    unix_seconds: float = 0.0
    """When the record was written."""


class Evidence(_Frozen):
    """What a gate knows of one export, kept beside the releases so that comparing needs nothing else."""

    iteration: int
    """Checkpoint that was exported."""
    documents: dict[str, tuple[float, int]]
    """Held-out documents: hash of the conversation -> sum of the cross entropy (nats), number of targets."""
    answers: tuple[dict[str, Any], ...] = ()
    """Answers to the recipe's tasks at that iteration: prompt, answer, expected, right."""


def read_releases(store: ObjectStore, name: str) -> dict[int, Release]:
    """Return the history of a release by number, ascending; empty if nothing was ever offered.

    Raises:
        CorruptObjectError: A record cannot be read; then nobody knows what serves.
    """
    keys = record_keys(store, release_prefix(validate_name(name, "release name")))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(keys, pool.map(lambda key: _read(store, key), keys.values()), strict=True))


def release_names(store: ObjectStore) -> list[str]:
    """Return the names of all releases, sorted; a folder whose name can be none is skipped with a warning."""
    folders = sorted(store.list_folders("releases/"))
    for folder in folders:
        if not is_name(folder):
            _log.warning("%s/releases/%s/: skipped, its name can be no release's", store.url.rstrip("/"), folder[:80])
    return [folder for folder in folders if is_name(folder)]


def serving(history: Mapping[int, Release]) -> str | None:
    """Return the folder of the export that the newest record points to."""
    return history[max(history)].export if history else None


def released_export(store: ObjectStore, name: str) -> str:
    """Return the folder of the export that serves under a release's name.

    Raises:
        MissingInputError: Nothing was ever promoted under that name, or its export is gone or is not what was promoted.
    """
    history = read_releases(store, name)
    export = serving(history)
    if export is None:
        known = ", ".join(release_names(store)) or "none"
        raise MissingInputError(
            f"release {name}: nothing has been promoted under this name in {store.url} (releases there: {known});"
            " promote a first one with a recipe whose model.source is a base model"
        )
    check_export(store, export, history[max(history)].manifest_sha256, f"release {name}")
    return export


def check_export(store: ObjectStore, export: str, manifest_sha256: str | None, what: str) -> str:
    """Return the digest of a finished export's manifest.

    Raises:
        MissingInputError: There is no finished export.
        CorruptObjectError: Its manifest is not the recorded one.
    """
    try:
        found = hashlib.sha256(store.get(manifest_key(export))).hexdigest()
    except ObjectMissing:
        found = None
    return check_digest(store, export, found, manifest_sha256, what)


def check_digest(store: ObjectStore, export: str, found: str | None, manifest_sha256: str | None, what: str) -> str:
    """Return ``found``, the digest of an export's manifest, None if there is none; raises as ``check_export`` does."""
    key = manifest_key(export)
    if found is None:
        raise MissingInputError(f"{what}: {store.url.rstrip('/')}/{export} is gone; roll back to one that is there")
    if manifest_sha256 not in (None, found):
        raise CorruptObjectError(
            f"{what}: {store.url.rstrip('/')}/{key}: expected sha256 {manifest_sha256}, got {found}; it was made again"
            " after it was released, so roll back or promote anew"
        )
    return found


def append_release(store: ObjectStore, name: str, history: Mapping[int, Release], release: Release) -> bool:
    """Write the record that follows ``history``; False if somebody else wrote one meanwhile, and nothing is written."""
    stamped = release.model_copy(update={"unix_seconds": round(time.time(), 3)})
    key = numbered(release_prefix(validate_name(name, "release name")), max(history, default=0) + 1)
    return store.put_if_absent(key, seal(stamped.model_dump(mode="json")), content_type="application/json")


def evidence_key(name: str, export: str) -> str:
    """Return the key of what the gate knows of an export."""
    return f"{release_prefix(name)}heldout/{export.rstrip('/').rsplit('/', 1)[-1]}.json"


def read_evidence(store: ObjectStore, name: str, export: str) -> Evidence | None:
    """Return what the gate knows of an export, None if nothing is recorded.

    Raises:
        CorruptObjectError: It cannot be read.
    """
    key = evidence_key(name, export)
    if store.head(key) is None:
        return None
    try:
        return Evidence.model_validate(read_sealed(store, key))
    except ValidationError as error:
        raise CorruptObjectError(
            f"{store.url.rstrip('/')}/{key}: expected what a gate compares, got {error}"
        ) from error


def write_evidence(store: ObjectStore, name: str, export: str, evidence: Evidence) -> None:
    """Record what the gate knows of an export, once."""
    data = seal(evidence.model_dump(mode="json"))
    store.put_if_absent(evidence_key(name, export), data, content_type="application/json")


def offered(history: Mapping[int, Release], export: str, gate: Mapping[str, Any]) -> tuple[int, Release] | None:
    """Return the record that says what became of an export: promoted or refused by this very gate; None without one.

    What was promoted once is never offered again by itself, so that a rollback holds.
    """
    found = [
        (number, release)
        for number, release in history.items()
        if release.candidate == export
        and (release.outcome == "promoted" or (release.outcome == "refused" and release.gate == dict(gate)))
    ]
    return found[-1] if found else None


def parse_release(values: Mapping[str, Any], address: str) -> Release:
    """Return a record that was read; ``address`` is named in the error.

    Raises:
        CorruptObjectError: It is none of a release.
    """
    try:
        return Release.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise CorruptObjectError(
            f"{address}: not a release record ({where}: {problem['msg']}); restore it from a backup"
        ) from error


def _read(store: ObjectStore, key: str) -> Release:
    return parse_release(read_sealed(store, key), f"{store.url.rstrip('/')}/{key}")
