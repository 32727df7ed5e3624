"""Writes the report of a run where a runner leaves it for people; a report that cannot be made never fails a run."""

from __future__ import annotations

import logging
from pathlib import Path

from stagecoach.errors import StagecoachError
from stagecoach.storage.base import ObjectStore

_log = logging.getLogger("stagecoach.report")


def write_report(store: ObjectStore, run_id: str, file: Path) -> bool:
    """Write the page of a run and say whether that was possible; a run that failed before its plan has none."""
    from stagecoach_workflows.report.facts import gather
    from stagecoach_workflows.report.page import run_page

    try:
        data = run_page(gather(store, run_id))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except (StagecoachError, OSError) as error:
        _log.info("no report of run %s: %s", run_id, error)
        return False
    return True
