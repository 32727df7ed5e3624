"""How run ids are made: they begin with UTC time, so that a plain listing of the store is in order of time.

20261125T013000Z-tiny-cpu-ab12                    made on this machine, at random
20261125T013000Z-stagecoach-tiny-cpu-4f0a-x7k2p   made from a workflow's name and time: the same on each retry
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

from stagecoach.paths import validate_run_id

_MAX_NAME = 60
_CRON_TIME = re.compile(r"-([0-9]{10})$")


def new_run_id(recipe_name: str, now_unix_seconds: float) -> str:
    """Return a fresh run id for a recipe."""
    return _run_id(now_unix_seconds, f"{slug(recipe_name, _MAX_NAME - 5)}-{secrets.token_hex(2)}")


def run_id_of_workflow(name: str, created_unix_seconds: float) -> str:
    """Return the run id of a workflow; a retry of its plan pod gets the same one.

    A workflow that a CronWorkflow made is called ``<cron name>-<unix time it was due>``; then that time counts.
    """
    due = _CRON_TIME.search(name)
    seconds = float(due.group(1)) if due else created_unix_seconds
    return _run_id(seconds, slug(name[-_MAX_NAME:], _MAX_NAME))


def slug(name: str, max_length: int) -> str:
    """Return ``name`` in ``a-z 0-9 -``, letters or digits at both ends, at most ``max_length`` characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:max_length].strip("-") or "run"


def _run_id(unix_seconds: float, name: str) -> str:
    time = datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y%m%dT%H%M%SZ")
    return validate_run_id(f"{time}-{name}")
