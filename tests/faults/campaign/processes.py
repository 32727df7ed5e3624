"""Runs a stage in a fork of this process, which has everything imported: a tenth of a second instead of one."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stagecoach.contract import stage_main

LIMIT_SECONDS = 600.0  # a training is patient with a store that does not answer for 300 s


@dataclass
class Child:
    """A stage that runs in a process group of its own."""

    pid: int
    log: Path
    exit_code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code once there is one, minus a signal's number where one ended it."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """Wait for the end; what takes too long is killed and counts as -9999."""
        limit = time.monotonic() + limit_seconds
        while self.poll() is None:
            if time.monotonic() > limit:
                self.kill()
                self.exit_code = -9999
                break
            time.sleep(0.002)
        assert self.exit_code is not None
        return self.exit_code

    def kill(self) -> None:
        """End the whole process group at once."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)


def fork(log: Path, environ: Mapping[str, str], work: Callable[[], int]) -> Child:
    """Do ``work`` in a child process whose output goes to ``log``; its exit code is what ``work`` returns."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # here too, so that a kill that follows at once finds the group
        return Child(pid, log)
    code = 99
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environ)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def stage(name: str, store_url: str, run_id: str, task: str) -> int:
    """The stage's own main, as its container starts it."""
    return stage_main(name, ["--store", store_url, "--run", run_id, "--task", task])
