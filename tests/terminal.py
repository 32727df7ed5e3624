"""Calls a program in a terminal of its own, as a person does: what it asks for a terminal is there."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def in_terminal(
    command: Sequence[str], typed: str, environ: Mapping[str, str], folder: Path, timeout_seconds: float
) -> tuple[str, int]:
    """Return what a program showed and its exit code.

    Args:
        command: The program's words.
        typed: What is typed into it; it has to end by that.
        environ: Its environment.
        folder: Its working folder.
        timeout_seconds: When it is killed.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, cwd=folder)
    os.close(theirs)
    guard = threading.Timer(timeout_seconds, process.kill)
    guard.start()
    os.write(ours, typed.encode())
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    finally:
        guard.cancel()
        os.close(ours)
    return shown.decode(errors="replace"), process.wait()
