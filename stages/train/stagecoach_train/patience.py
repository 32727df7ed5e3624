"""Waits for a store that does not answer for a while, so that its restart does not end a training that is healthy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from stagecoach.errors import StoreUnavailable

STORE_PATIENCE_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0

_log = logging.getLogger("stagecoach.train")
_T = TypeVar("_T")


def patiently(action: Callable[[], _T], what: str, patience_seconds: float = STORE_PATIENCE_SECONDS) -> _T:
    """Do something with the store, again and again while the store does not answer, for at most ``patience_seconds``.

    Args:
        action: What to do.
        what: Its name in the log.
        patience_seconds: How long to try.

    Raises:
        StoreUnavailable: The store stayed away for longer.
    """
    limit_seconds = time.monotonic() + patience_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except StoreUnavailable as error:
            if time.monotonic() + pause_seconds > limit_seconds:
                raise
            _log.warning("%s: the store does not answer, trying again in %.1f s: %s", what, pause_seconds, error)
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
