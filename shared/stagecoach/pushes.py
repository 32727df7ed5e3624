"""What was pushed to which branch on the Hub: numbered records a branch, of which the highest says what the branch holds.

    pushes/<digest of Hub, repository, branch>/0001.json    {state: started, export: exports/a-..}
                                               0002.json    {state: pushed,  export: exports/a-.., commit: ..}
                                               0003.json    {state: started, export: exports/b-..}

A record lies with its branch and not with its export, so that A, B and A again are three pushes. "started" comes before
the push: after one that was killed nobody knows what the branch holds, so it counts for neither export. "pushed" comes
after it, unless another export's record came between: then nobody knows, either, and this one is pushed again.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
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
_log = logging.getLogger("stagecoach.pushes")


def push_records(push: PushConfig, settings: Settings) -> str:
    """Return the folder of the records of what is pushed to that branch of that Hub."""
    branch = canonical_json([settings.hub_address, push.repo, push.branch])
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
    for at in range(1, _MAX_TRIES + 1):
        if is_pushed(store, records, export):
            return
        what = _what(store, export)
        number = write_numbered(store, records, {"state": "started", **what})
        begun_seconds = time.monotonic()
        done = {"state": "pushed", **what, **push()}
        newest = _finish(store, records, number, done)
        if newest is None:
            return
        if newest != "pushed" and at < _MAX_TRIES:
            # who began later ends later: beginning anew at once would get in its way as it did in this one's
            pause_seconds = random.uniform(at, 2 * at) * (time.monotonic() - begun_seconds)
            _log.info("%s: another export is pushed to the branch; pushing again in %.0f s", export, pause_seconds)
            time.sleep(pause_seconds)
    raise UnavailableError(f"{export}: other exports are pushed to the same branch at the same time; run it again")


def _finish(store: ObjectStore, records: str, number: int, done: dict[str, Any]) -> Any:
    """Write ``done`` after record ``number``; if another export's came between, return the newest one's state instead.

    Pushes of one export at once all count: whichever came last, the branch holds it.
    """
    while True:
        later = {at: read_sealed(store, key) for at, key in record_keys(store, records).items() if at > number}
        if any(each.get(name) != done[name] for each in later.values() for name in ("export", "manifest_sha256")):
            return later[max(later)].get("state")
        key = numbered(records, max(later, default=number) + 1)
        if store.put_if_absent(key, seal(done), content_type="application/json"):
            return None


def _what(store: ObjectStore, export: str) -> dict[str, Any]:
    digest = hashlib.sha256(store.get(manifest_key(export))).hexdigest()
    return {"export": export, "manifest_sha256": digest}
