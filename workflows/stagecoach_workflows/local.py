"""Runs a step of the workflow as a subprocess of this machine, with the arguments it would get in its container."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from stagecoach.errors import ConfigError
from stagecoach.settings import child_environ
from stagecoach_workflows.engine import TaskRun, signal_group
from stagecoach_workflows.interpret import Step

_WITHOUT_MEANING = frozenset({"STAGECOACH_IMAGE_DIGEST"})
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class LocalLauncher:
    """Starts ``python -m stagecoach_pack ..`` with this interpreter, each attempt in a process group of its own."""

    def __init__(self, extra_environ: Mapping[str, str] | None = None) -> None:
        """Keep what every child gets on top of this process's environment."""
        self._extra = dict(extra_environ or {})

    def start(self, step: Step, args: tuple[str, ...], run: TaskRun, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start one attempt.

        Raises:
            ConfigError: The step runs something else than Python.
        """
        program, *rest = step.command
        if program != "python":
            raise ConfigError(f"template {step.name}: expected command python, got {program!r}; use --runner docker")
        environ = {name: _mapped(value, step, run) for name, value in step.env.items() if name not in _WITHOUT_MEANING}
        environ |= {"ARGO_PROGRESS_FILE": str(run.progress_file), "PYTHONUNBUFFERED": "1", **self._extra}
        return subprocess.Popen(
            [sys.executable, *rest, *args],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environ(**environ),
            start_new_session=True,
            preexec_fn=_end_with_the_runner,
        )

    def kill(self, run: TaskRun) -> None:
        """End the attempt's whole process group at once."""
        if run.process is not None:
            signal_group(run.process.pid, signal.SIGKILL)
            run.process.wait()


def _mapped(value: str, step: Step, run: TaskRun) -> str:
    """Return an environment value with a path on the artifacts volume turned into the local folder."""
    root = step.mounts.get("artifacts")
    if root is not None and value.startswith("/") and PurePosixPath(value).is_relative_to(root):
        return str(run.artifacts / Path(value).relative_to(root))
    return value


def _end_with_the_runner() -> None:
    """Ask the kernel for a SIGTERM when the runner dies, even by SIGKILL, so that no training goes on unseen."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
