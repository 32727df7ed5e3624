"""How a stage says how far it is: a file for the workflow engine, a note for the runner that watches, and log lines.

The engine (Argo) reads whole numbers ``done/total`` from ``ARGO_PROGRESS_FILE`` and adds them up over all pods, so every
stage scales itself to the same total. The note (``<progress file>.note``) holds one line of text for people.
Neither may ever end a stage: a full disk here is not an error.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

PROGRESS_TOTAL = 1000
_LOG_EVERY_SECONDS = 10.0
_WRITE_EVERY_SECONDS = 0.2

_log = logging.getLogger("stagecoach.progress")


class Progress:
    """Scales a stage's own counts to 1,000 and writes them where somebody looks."""

    def __init__(self, file: Path | None = None) -> None:
        """Write to ``file`` and beside it; with None, only log."""
        self._file = file
        self._next_write_seconds = 0.0
        self._next_log_seconds = time.monotonic() + _LOG_EVERY_SECONDS

    def update(self, done: int, total: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` units are done; cheap enough to call for each of them."""
        now_seconds = time.monotonic()
        last = done >= total
        if now_seconds >= self._next_write_seconds or last:
            self._next_write_seconds = now_seconds + _WRITE_EVERY_SECONDS
            scaled = min(PROGRESS_TOTAL, max(0, done * PROGRESS_TOTAL // max(total, 1)))
            self._write(f"{scaled}/{PROGRESS_TOTAL}\n", note)
        if now_seconds >= self._next_log_seconds:
            self._next_log_seconds = now_seconds + _LOG_EVERY_SECONDS
            _log.info("%d of %d%s", done, total, f" ({note})" if note else "")

    def _write(self, line: str, note: str) -> None:
        if self._file is None:
            return
        try:
            _replace(self._file, line)
            if note:
                _replace(self._file.with_name(self._file.name + ".note"), note + "\n")
        except OSError as error:
            _log.debug("progress not written: %s", error)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


NO_PROGRESS = Progress()
