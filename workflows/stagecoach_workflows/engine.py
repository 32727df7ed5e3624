"""Executes a workflow's graph on one machine: what Argo's controller does, for subprocesses.

Tasks start as soon as what they wait for has ended well or was skipped, side by side; ``when`` decides run or skip; an
attempt that ends with a retryable exit code is made again after its backoff; after a failure nothing new starts.
One thread polls the processes, so there is no race to think about.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import IO, Protocol

from stagecoach_workflows.interpret import Graph, Step, TaskSpec, substitute
from stagecoach_workflows.policy import is_retryable

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 180.0
_ENDED_BY_US = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""Exit codes of a task that a stop of the whole run ended, or a second one killed; not that task's failure."""


class State(StrEnum):
    """Where a task stands."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    OMITTED = "omitted"


ENDED_WELL = (State.DONE, State.SKIPPED)


@dataclass(slots=True)
class TaskRun:
    """What is known about one task while the workflow runs."""

    spec: TaskSpec
    folder: Path
    """Files of this task: its progress and artifacts."""
    log: Path
    """What it writes to standard output and error, all attempts."""
    state: State = State.WAITING
    attempt: int = 0
    started_seconds: float | None = None
    """On the monotonic clock; of the first attempt."""
    ended_seconds: float | None = None
    exit_code: int | None = None
    retry_at_seconds: float = 0.0
    outputs: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def progress_file(self) -> Path:
        """Where the stage writes ``done/total``."""
        return self.folder / "progress"

    @property
    def artifacts(self) -> Path:
        """Where the stage leaves small files, output parameters among them."""
        return self.folder / "artifacts"

    def seconds(self) -> float:
        """Return how long it has been running, waits between attempts included."""
        if self.started_seconds is None:
            return 0.0
        return (time.monotonic() if self.ended_seconds is None else self.ended_seconds) - self.started_seconds

    def progress(self) -> tuple[float, str]:
        """Return the share that is done, 0 to 1, and the stage's note."""
        if self.state in ENDED_WELL:
            return 1.0, _read(self.progress_file.with_name("progress.note"))
        done, _, total = _read(self.progress_file).partition("/")
        if not (done.isdecimal() and total.isdecimal() and int(total) > 0):
            return 0.0, ""
        return min(1.0, int(done) / int(total)), _read(self.progress_file.with_name("progress.note"))

    def last_sentence(self) -> str:
        """Return what the stage said last: its last error, with the indented lines below it, else its last line."""
        lines = [line.rstrip() for line in _read(self.log, last_bytes=65536).splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if " E " in line[:40]]
        if not errors:
            said = [line for line in lines if not line.startswith("srun: ")] or lines  # it repeats the exit code
            return said[-1].strip() if said else ""
        below = takewhile(lambda line: line.startswith("  "), lines[errors[-1] + 1 :])
        return "\n".join([lines[errors[-1]].split(": ", 1)[-1], *below])


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a workflow ended."""

    exit_code: int
    failed_task: str | None = None
    message: str = ""


class Launcher(Protocol):
    """Turns a step into a process of this machine."""

    def start(self, step: Step, args: tuple[str, ...], run: TaskRun, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start one attempt in a process group of its own."""
        ...

    def kill(self, run: TaskRun) -> None:
        """End an attempt at once, whatever it is doing."""
        ...


class Engine:
    """One execution of one graph."""

    def __init__(
        self,
        graph: Graph,
        launcher: Launcher,
        folder: Path,
        *,
        parameters: Mapping[str, str],
        on_tick: Callable[[Mapping[str, TaskRun]], None] = lambda runs: None,
        max_parallel: int = 4,
        max_retries: int | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            graph: What to run.
            launcher: How a step becomes a process.
            folder: Folder for logs and small files.
            parameters: Values of the workflow's parameters, over their defaults.
            on_tick: Is shown all tasks, several times a second.
            max_parallel: Most tasks at once.
            max_retries: At most so many retries of each task, instead of what the workflow says.
        """
        self._graph = graph
        self._launcher = launcher
        self._on_tick = on_tick
        self._max_parallel = max_parallel
        self._max_retries = max_retries
        self._values = {
            "workflow.name": graph.name,
            "workflow.creationTimestamp.s": str(int(time.time())),
            **{f"workflow.parameters.{name}": value for name, value in {**graph.parameters, **parameters}.items()},
        }
        self._stop_signals = 0
        self._stop_forwarded = 0
        self._stopped_at_seconds = 0.0
        self.runs = {
            task.name: TaskRun(spec=task, folder=folder / task.name, log=folder / "logs" / f"{task.name}.log")
            for task in graph.tasks
        }

    def stop(self) -> None:
        """Ask the running tasks to end (SIGTERM, so that train saves); a second call ends them at once."""
        self._stop_signals += 1

    def run(self) -> Outcome:
        """Run to the end and return how it ended."""
        try:
            while True:
                self._collect()
                self._forward_stop()
                if not (self._stop_signals or self._failed()):
                    self._start_ready()
                self._on_tick(self.runs)
                if self._ended():
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            for run in self._running():
                self._launcher.kill(run)
        return self._outcome()

    def _start_ready(self) -> None:
        for run in self.runs.values():
            if run.state is State.RETRYING and time.monotonic() >= run.retry_at_seconds:
                self._start(run)
            elif run.state is State.WAITING and self._may_start(run):
                self._decide(run)

    def _may_start(self, run: TaskRun) -> bool:
        return all(self.runs[name].state in ENDED_WELL for name in run.spec.depends)

    def _decide(self, run: TaskRun) -> None:
        if run.spec.when is not None:
            tag, wanted = run.spec.when
            if substitute(tag, self._values, f"task {run.spec.name}: when") != wanted:
                run.state = State.SKIPPED
                return
        if len(self._running()) < self._max_parallel:
            self._start(run)

    def _start(self, run: TaskRun) -> None:
        step = self._graph.step_of(run.spec)
        where = f"task {run.spec.name}"
        given = {name: substitute(value, self._values, where) for name, value in run.spec.arguments.items()}
        values = {**self._values, **{f"inputs.parameters.{name}": given[name] for name in step.inputs}}
        args = tuple(substitute(arg, values, where) for arg in step.args)
        run.artifacts.mkdir(parents=True, exist_ok=True)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (run.progress_file, run.progress_file.with_name("progress.note")):
            leftover.unlink(missing_ok=True)
        run.attempt += 1
        run.state = State.RUNNING
        run.started_seconds = run.started_seconds if run.started_seconds is not None else time.monotonic()
        with open(run.log, "ab") as log:
            run.process = self._launcher.start(step, args, run, log)

    def _collect(self) -> None:
        for run in self._running():
            code = run.process.poll() if run.process is not None else None
            if code is not None:
                self._end(run, 128 - code if code < 0 else code)

    def _end(self, run: TaskRun, exit_code: int) -> None:
        run.exit_code = exit_code
        run.process = None
        run.ended_seconds = time.monotonic()
        if exit_code == 0:
            run.state = State.DONE
            self._read_outputs(run)
            return
        retry = self._graph.step_of(run.spec).retry
        limit = (
            0 if retry is None else retry.limit if self._max_retries is None else min(retry.limit, self._max_retries)
        )
        if retry is not None and is_retryable(exit_code) and run.attempt <= limit and not self._stop_signals:
            run.state = State.RETRYING
            run.ended_seconds = None
            run.retry_at_seconds = time.monotonic() + retry.wait_seconds(run.attempt)
        else:
            run.state = State.FAILED

    def _read_outputs(self, run: TaskRun) -> None:
        step = self._graph.step_of(run.spec)
        for name, output in step.outputs.items():
            path = self._local(step, output.path, run)
            value = path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else output.default
            if value is None:
                raise FileNotFoundError(f"task {run.spec.name}: output parameter {name}: {path} was not written")
            run.outputs[name] = value
            self._values[f"tasks.{run.spec.name}.outputs.parameters.{name}"] = value

    @staticmethod
    def _local(step: Step, path: str, run: TaskRun) -> Path:
        root = step.mounts["artifacts"]
        return run.artifacts / Path(path).relative_to(root)

    def _forward_stop(self) -> None:
        """Pass a stop on once, then end what is left when it is asked for again or the time is up."""
        if self._stop_signals and not self._stop_forwarded:
            self._stopped_at_seconds = time.monotonic()
            self._stop_forwarded = 1
            for run in self._running():
                if run.process is not None:
                    signal_group(run.process.pid, signal.SIGTERM)
        overdue = self._stop_forwarded and time.monotonic() - self._stopped_at_seconds > _GRACE_SECONDS
        if overdue or self._stop_signals > 1:
            for run in self._running():
                self._launcher.kill(run)

    def _running(self) -> list[TaskRun]:
        return [run for run in self.runs.values() if run.state is State.RUNNING]

    def _failed(self) -> list[TaskRun]:
        return [run for run in self.runs.values() if run.state is State.FAILED]

    def _ended(self) -> bool:
        if self._running():
            return False
        if self._stop_signals or self._failed():
            for run in self.runs.values():
                if run.state in (State.WAITING, State.RETRYING):
                    run.state = State.OMITTED
            return True
        return all(run.state in ENDED_WELL for run in self.runs.values())

    def _outcome(self) -> Outcome:
        failed = sorted(self._failed(), key=lambda run: run.ended_seconds or 0.0)
        first = failed[0] if failed else None
        if first is not None and not (self._stop_signals and first.exit_code in _ENDED_BY_US):
            return Outcome(exit_code=first.exit_code or 70, failed_task=first.spec.name, message=first.last_sentence())
        if any(run.state not in ENDED_WELL for run in self.runs.values()):
            code = first.exit_code if first is not None else None
            return Outcome(
                exit_code=code or _ENDED_BY_US[0], message="stopped before it was finished; run it again to go on"
            )
        return Outcome(exit_code=0)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group; one that has ended already is fine."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _read(path: Path, last_bytes: int = 4096) -> str:
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - last_bytes))
            return stream.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
