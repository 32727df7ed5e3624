"""Leaves the reason of a failure where Kubernetes picks it up, so that it becomes the message of the workflow's node.

Without it the node shows the end of the container's log, which belongs to Argo's own executor.
"""

from __future__ import annotations

from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts this file into every container; elsewhere it does not exist."""
_MAX_BYTES = 4000  # Kubernetes keeps 4096


def leave(sentence: str, termination_log: Path = TERMINATION_LOG) -> None:
    """Write ``sentence`` for Kubernetes; does nothing outside a pod, and never fails the caller."""
    try:
        if termination_log.exists():
            termination_log.write_bytes(sentence.encode("utf-8", "replace")[:_MAX_BYTES])
    except OSError:
        return  # the sentence is in the log too
