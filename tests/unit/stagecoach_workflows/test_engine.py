"""The runner's engine on real subprocesses: order, side by side, conditions, retries, failure, signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stagecoach_workflows.engine import Engine, Outcome, State, TaskRun
from stagecoach_workflows.interpret import Retry, read_workflow
from stagecoach_workflows.local import LocalLauncher
from tests.unit.stagecoach_workflows.documents import container, document, task

COUNT = """
import pathlib, sys
file = pathlib.Path({folder!r}, "count-{name}")
file.write_text(file.read_text() + "x" if file.exists() else "x")
if len(file.read_text()) <= {failures}:
    print("2026-11-25 01:30:00,000 E stagecoach: attempt went wrong", file=sys.stderr)
    sys.exit({code})
"""


def engine(
    tmp_path: Path,
    tasks: list[dict[str, Any]],
    templates: list[dict[str, Any]],
    *,
    on_tick: Callable[[Mapping[str, TaskRun]], None] = lambda runs: None,
    max_parallel: int = 4,
    max_retries: int | None = None,
) -> Engine:
    return Engine(
        read_workflow(document(tasks, templates)),
        LocalLauncher(),
        tmp_path / "run",
        parameters={},
        on_tick=on_tick,
        max_parallel=max_parallel,
        max_retries=max_retries,
    )


def states(made: Engine) -> dict[str, State]:
    return {name: run.state for name, run in made.runs.items()}


def counting(tmp_path: Path, name: str, *, failures: int, code: int, retries: int | None) -> dict[str, Any]:
    script = COUNT.format(folder=str(tmp_path), name=name, failures=failures, code=code)
    return container(name, script, retries=retries)


def test_a_chain_runs_in_order_and_keeps_logs(tmp_path: Path) -> None:
    made = engine(
        tmp_path,
        [task("a"), task("b", after="a")],
        [container("a", "import sys; print(sys.argv[1])"), container("b", "print('second')")],
    )
    assert made.run() == Outcome(exit_code=0)
    assert made.runs["a"].log.read_text() == "hello\n"
    assert made.runs["b"].log.read_text() == "second\n"


def test_independent_tasks_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for a file that only the other one writes, so one after the other would never end."""
    script = """
import pathlib, time
folder = pathlib.Path({folder!r})
(folder / "{mine}").touch()
end = time.monotonic() + 30
while not (folder / "{other}").exists():
    assert time.monotonic() < end
    time.sleep(0.01)
"""
    one = script.format(folder=str(tmp_path), mine="a", other="b")
    other = script.format(folder=str(tmp_path), mine="b", other="a")
    made = engine(tmp_path, [task("a"), task("b")], [container("a", one), container("b", other)])
    assert made.run().exit_code == 0


def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    most = 0

    def watch(runs: Mapping[str, TaskRun]) -> None:
        nonlocal most
        most = max(most, sum(run.state is State.RUNNING for run in runs.values()))

    names = ["a", "b", "c"]
    templates = [container(name, "import time; time.sleep(0.15)") for name in names]
    assert (
        engine(tmp_path, [task(name) for name in names], templates, on_tick=watch, max_parallel=2).run().exit_code == 0
    )
    assert most == 2


def test_a_condition_reads_an_output_and_a_skipped_task_lets_the_next_run(tmp_path: Path) -> None:
    script = "import os, pathlib; pathlib.Path(os.environ['STAGECOACH_ARTIFACTS'], 'decision').write_text('skip')"
    when = "'{{tasks.plan.outputs.parameters.decision}}' == 'run'"
    made = engine(
        tmp_path,
        [task("plan"), task("a", after="plan", when=when), task("b", after="a")],
        [container("plan", script, outputs=("decision",)), container("a", "1/0"), container("b", "pass")],
    )
    assert made.run().exit_code == 0
    assert states(made) == {"plan": State.DONE, "a": State.SKIPPED, "b": State.DONE}


def test_an_output_that_was_not_written_takes_its_default(tmp_path: Path) -> None:
    when = "'{{tasks.plan.outputs.parameters.decision}}' == 'run'"
    made = engine(
        tmp_path,
        [task("plan"), task("a", after="plan", when=when)],
        [container("plan", "pass", outputs=("decision",)), container("a", "pass")],
    )
    made.run()
    assert states(made)["a"] is State.DONE


def test_a_retryable_exit_code_is_tried_again(tmp_path: Path) -> None:
    made = engine(tmp_path, [task("a")], [counting(tmp_path, "a", failures=2, code=75, retries=3)])
    assert made.run().exit_code == 0
    assert made.runs["a"].attempt == 3


def test_a_process_that_was_killed_is_tried_again(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
file = pathlib.Path({str(tmp_path)!r}, "seen")
if not file.exists():
    file.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    made = engine(tmp_path, [task("a")], [container("a", script, retries=1)])
    assert made.run().exit_code == 0
    assert made.runs["a"].attempt == 2


@pytest.mark.parametrize(("code", "attempts"), [(78, 1), (70, 1), (75, 3)])
def test_a_permanent_exit_code_ends_the_run_with_that_code(tmp_path: Path, code: int, attempts: int) -> None:
    made = engine(tmp_path, [task("a")], [counting(tmp_path, "a", failures=9, code=code, retries=2)])
    assert made.run() == Outcome(exit_code=code, failed_task="a", message="attempt went wrong")
    assert made.runs["a"].attempt == attempts


def test_retries_can_be_turned_off(tmp_path: Path) -> None:
    made = engine(tmp_path, [task("a")], [counting(tmp_path, "a", failures=9, code=75, retries=5)], max_retries=0)
    assert made.run().exit_code == 75
    assert made.runs["a"].attempt == 1


def test_after_a_failure_nothing_new_starts(tmp_path: Path) -> None:
    tasks = [task("a"), task("b"), task("c", after="b")]
    templates = [
        container("a", "raise SystemExit(79)"),
        container("b", "import time; time.sleep(1)"),
        container("c", "pass"),
    ]
    made = engine(tmp_path, tasks, templates)
    assert made.run().exit_code == 79
    assert states(made) == {"a": State.FAILED, "b": State.DONE, "c": State.OMITTED}


def test_progress_and_note_of_a_stage_are_seen(tmp_path: Path) -> None:
    script = """
import os, pathlib, time
file = pathlib.Path(os.environ["ARGO_PROGRESS_FILE"])
file.with_name(file.name + ".note").write_text("loss 0.5")
file.write_text("250/1000")
time.sleep(0.5)
"""
    seen: set[tuple[float, str]] = set()
    made = engine(tmp_path, [task("a")], [container("a", script)], on_tick=lambda runs: seen.add(runs["a"].progress()))
    made.run()
    assert (0.25, "loss 0.5") in seen


def test_a_stop_reaches_the_whole_process_group_and_nothing_is_tried_again(tmp_path: Path) -> None:
    """The stage has a child of its own, as train has ranks; both must hear of it."""
    script = f"""
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: (pathlib.Path({str(tmp_path / "child")!r}).touch(), sys.exit()))
print("ready", flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
def stop(*arguments):
    child.wait(20)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""
    made = engine(tmp_path, [task("a"), task("b", after="a")], [container("a", script, retries=3), container("b", "")])
    made._on_tick = _stopping(made, tmp_path / "ready", times=1)
    outcome = made.run()
    assert (outcome.exit_code, outcome.failed_task) == (75, "a")
    assert (tmp_path / "child").exists()
    assert states(made)["b"] is State.OMITTED


def test_a_second_stop_kills(tmp_path: Path) -> None:
    script = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""
    made = engine(tmp_path, [task("a")], [container("a", script, retries=3)])
    made._on_tick = _stopping(made, tmp_path / "ready", times=2)
    began = time.monotonic()
    outcome = made.run()
    assert outcome.exit_code == 128 + signal.SIGKILL
    assert time.monotonic() - began < 30


def test_a_stop_is_no_failure_of_the_task_that_it_ended(tmp_path: Path) -> None:
    script = f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    made = engine(tmp_path, [task("a")], [container("a", script)])
    made._on_tick = _stopping(made, tmp_path / "ready", times=1)
    assert made.run() == Outcome(exit_code=143, message="stopped before it was finished; run it again to go on")


def _stopping(made: Engine, ready: Path, *, times: int) -> Callable[[Mapping[str, TaskRun]], None]:
    """A watcher that asks for a stop so many times, a tick apart, once the stage is ready for it."""
    left = times

    def watch(runs: Mapping[str, TaskRun]) -> None:
        nonlocal left
        if left and ready.exists():
            left -= 1
            made.stop()

    return watch


def test_the_wait_before_a_retry_doubles_up_to_its_cap() -> None:
    retry = Retry(limit=5, backoff_seconds=10, factor=2, cap_seconds=300)
    assert [retry.wait_seconds(failures) for failures in (1, 2, 3, 6, 7)] == [10, 20, 40, 300, 300]


def test_the_last_error_line_is_the_message(tmp_path: Path) -> None:
    run = TaskRun(
        spec=read_workflow(document([task("a")], [container("a", "")])).tasks[0], folder=tmp_path, log=tmp_path / "log"
    )
    run.log.write_text(
        "2026-11-25 01:30:00,000 E stagecoach: data/x.jsonl: row 3: no messages\n2026-11-25 01:30:01,000 I x: bye\n"
    )
    assert run.last_sentence() == "data/x.jsonl: row 3: no messages"
    run.log.write_text("2026-11-25 01:30:00,000 E stagecoach: 2 bad rows:\n  a: row 3\n  a: row 4\nstderr of a child\n")
    assert run.last_sentence() == "2 bad rows:\n  a: row 3\n  a: row 4"
    run.log.write_text("store: there is no directory /x\nsrun: error: n1: task 0: Exited with exit code 78\n")
    assert run.last_sentence() == "store: there is no directory /x"
    run.log.write_text("srun: error: Unable to allocate resources\n")
    assert run.last_sentence() == "srun: error: Unable to allocate resources"
    run.log.write_text("Traceback\nKilled\n")
    assert run.last_sentence() == "Killed"
