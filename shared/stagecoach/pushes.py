"""What was pushed to which branch on the Hub: numbered records a branch, of which the highest says what the branch holds.

    pushes/<digest of Hub, repository, branch>/0001.json    {state: started, export: exports/a-..}
                                               0002.json    {state: pushed,  export: exports/a-.., commit: ..}
                                               0003.json    {state: started, export: exports/b-..}

A record lies with its branch and not with its export, so that A, B and A again are three pushes. "started" comes before
the push: after one that was killed nobody knows what the branch holds, so it counts for neither export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from stagecoach.errors import UnavailableError
from stagecoach.keys import canonical_json
from stagecoach.paths import manifest_key, numbered, push_prefix
from stagecoach.recipe.export import PushConfig
from stagecoach.records import read_sealed, record_keys, write_numbered
from stagecoach.sealed import seal
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore

_MAX_TRIES = 5


def push_records(push: PushConfig, settings: Settings) -> str:
    """Return the folder of the records of what is pushed to that branch of that Hub."""
    hub = (settings.hub_endpoint or "https://huggingface.co").rstrip("/")
    branch = canonical_json([hub, push.repo, push.branch])
    return push_prefix(hashlib.sha256(branch.encode("ascii")).hexdigest()[:20])


def is_pushed(store: ObjectStore, records: str, export: str) -> bool:
    """Whether the branch of these records holds that finished export, as it lies in the store now.

    Raises:
        CorruptObjectError: The newest record cannot be read.
    """
    keys = record_keys(store, records)
    if not keys:
        return False
    newest = read_sealed(store, keys[max(keys)])
    return newest.get("state") == "pushed" and _what(store, export).items() <= newest.items()


def push_once(store: ObjectStore, records: str, export: str, push: Callable[[], dict[str, Any]]) -> None:
    """Push an export unless the branch holds it, and record it.

    Args:
        store: Holds the export and gets the records.
        records: Folder of the branch's records.
        export: Folder of the finished export.
        push: Does it, and returns what belongs into the record.

    Raises:
        UnavailableError: Others push to the branch all the time.
    """
    for _ in range(_MAX_TRIES):
        if is_pushed(store, records, export):
            return
        what = _what(store, export)
        number = write_numbered(store, records, {"state": "started", **what})
        done = seal({"state": "pushed", **what, **push()})
        # only with nobody else's record in between is this push the branch's newest for sure
        if store.put_if_absent(numbered(records, number + 1), done, content_type="application/json"):
            return
    raise UnavailableError(f"{export}: other exports are pushed to the same branch at the same time; run it again")


def _what(store: ObjectStore, export: str) -> dict[str, Any]:
    digest = hashlib.sha256(store.get(manifest_key(export))).hexdigest()
    return {"export": export, "manifest_sha256": digest}
