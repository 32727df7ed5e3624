"""How soon the command line answers, a finished stage is done again, a run without change ends and a training stops.

    make bench-starts

One run of tiny-cpu in a folder of its own: interrupted by a SIGTERM in the middle of ``train``, taken up by the same
command, then a new run, which starts no stage but asks the model again; then every stage alone, which finds its
work done. ``python -c pass`` stands beside them, since nothing in Python starts sooner. Writes results/starts.json.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.floors import judge
from stagecoach.plan_file import Plan, read_plan
from stagecoach.settings import child_environ
from stagecoach.storage.local import LocalStore

RESULT = Path(__file__).with_name("results") / "starts.json"
RUN = "20261129T010000Z-tiny-cpu-starts"
ROUNDS = 5
RESUMABLE = 75
PATIENCE_SECONDS = 600
SHARE_BEFORE_SIGNAL = 0.3
"""How much of ``train`` is done when it is told to stop."""


def seconds_of(command: list[str], folder: Path, *, expected: int = 0) -> float:
    """Return the seconds of a whole process.

    Raises:
        RuntimeError: It ended with another code than expected.
    """
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode != expected:
        raise RuntimeError(f"{' '.join(command)}: expected exit code {expected}, got {done.returncode}:\n{done.stderr}")
    return seconds


def median_seconds(command: list[str], folder: Path) -> float:
    """Return the median of several whole processes."""
    return statistics.median(seconds_of(command, folder) for _ in range(ROUNDS))


def environment(folder: Path) -> dict[str, str]:
    """Return what a process gets: one thread a rank, scratch of its own."""
    return child_environ(STAGECOACH_SCRATCH=str(folder / "scratch"), OMP_NUM_THREADS="1")


def run_command(folder: Path, *more: str) -> list[str]:
    """Return the command line of ``make run`` in a folder of its own."""
    fixed = ["--work", str(folder), "--answers", "10", "--require-answers", "8", *more]
    return [sys.executable, "-m", "stagecoach_workflows", "run", "tiny-cpu", *fixed]


def stop_seconds(folder: Path) -> float:
    """Start the run, stop it in the middle of its training; returns the seconds from the signal to its end.

    Raises:
        RuntimeError: The training never came to the middle, or the run did not end as one to go on with.
    """
    file, command = folder / "first.log", run_command(folder, "--run", RUN)
    with file.open("w") as log:
        process = subprocess.Popen(command, env=environment(folder), stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not middle_of_training(folder):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"expected {SHARE_BEFORE_SIGNAL:.0%} of train, got an end:\n{file.read_text()}")
            time.sleep(0.05)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_SECONDS)
        seconds = time.monotonic() - started
    finally:
        process.kill()
    if code != RESUMABLE:
        raise RuntimeError(f"a stopped run: expected exit code {RESUMABLE}, got {code}:\n{file.read_text()}")
    return seconds


def middle_of_training(folder: Path) -> bool:
    """Whether train's progress file says that it is past the share at which it is told to stop."""
    file = folder / RUN / "train" / "progress"
    done, _, total = file.read_text(encoding="utf-8").partition("/") if file.is_file() else ("0", "", "1")
    return int(done or 0) > SHARE_BEFORE_SIGNAL * int(total or 1)


def stage_seconds(plan: Plan, store: LocalStore, folder: Path) -> dict[str, float]:
    """Return task -> median seconds of its stage's process, which finds the work done."""
    return {
        name: median_seconds(
            [sys.executable, "-m", f"stagecoach_{task.stage}", "--store", store.url, "--run", RUN, "--task", name],
            folder,
        )
        for name, task in plan.tasks.items()
    }


def main() -> int:
    """Measure, write the result and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = [sys.executable, "-m", "stagecoach_workflows", "--help"]
        python = median_seconds([sys.executable, "-c", "pass"], folder)
        answers = median_seconds(program, folder)
        stop = stop_seconds(folder)
        seconds_of(run_command(folder, "--run", RUN), folder)
        again = median_seconds(run_command(folder), folder)
        store = LocalStore(folder / "store")
        stages = stage_seconds(read_plan(store, RUN), store, folder)
    figures = {
        "python_seconds": round(python, 3),
        "help_seconds": round(answers, 3),
        "stop_seconds": round(stop, 2),
        "again_seconds": round(again, 2),
        "done_seconds": round(max(stages.values()), 2),
    }
    machine = {"cpu": platform.processor() or platform.machine(), "num_cores": os.cpu_count()}
    result = {"machine": machine, **figures, "done_seconds_by_task": {k: round(v, 2) for k, v in stages.items()}}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return judge("starts", figures)


if __name__ == "__main__":
    raise SystemExit(main())
