"""Named points at which a fault test can kill the whole process group, to prove that the next run recovers.

The points in use: "after the last object, before the manifest" and "between two checkpoint objects"; each names a
moment in which a half-finished output exists in the store. Nothing happens unless the environment names the point.
"""

from __future__ import annotations

import os
import signal

from stagecoach.settings import Settings

AFTER_LAST_OBJECT = "after the last object, before the manifest"
BETWEEN_CHECKPOINT_OBJECTS = "between two checkpoint objects"


def hit(point: str) -> None:
    """Kill this process group with SIGKILL if the environment names this point, else return at once."""
    if Settings.from_environ().fault_point == point:
        os.killpg(os.getpgid(0), signal.SIGKILL)
