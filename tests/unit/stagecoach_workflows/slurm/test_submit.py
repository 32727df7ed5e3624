"""``submit.sh`` where a run was submitted before, or is just now: no live job is lost, nothing old counts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach_workflows.slurm.client import Slurm
from stagecoach_workflows.slurm.runs import SlurmRun, SlurmRuns
from stagecoach_workflows.slurm.scripts import PROBE
from tests.unit.stagecoach_workflows.slurm.stub_slurm import RUN, StubSlurm


def leave_exit_codes(run: SlurmRun, code: int) -> None:
    for task in run.jobs():
        (run.folder / task).mkdir(exist_ok=True)
        (run.folder / task / "exit").write_text(f"{code}\n")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUE_HOLD"])
def test_a_run_with_live_jobs_is_refused_and_keeps_them(run: SlurmRun, cluster: StubSlurm, state: str) -> None:
    first = run.submit()
    assert len(first) == 10
    cluster.set_queue({**dict.fromkeys(first.values(), "COMPLETED"), first["train"]: state})
    with pytest.raises(ConfigError, match=rf"not ended: train \({first['train']}, {state}\); wait .*, or cancel"):
        run.submit()
    assert run.jobs() == first
    assert len(cluster.queue) == 10 and cluster.cancelled() == []


def test_a_job_past_its_last_line_is_not_waited_for(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    leave_exit_codes(run, 70)
    cluster.set_queue({**dict.fromkeys(first.values(), "COMPLETED"), first["notify"]: "COMPLETING"})
    second = run.submit()
    assert not set(second.values()) & set(first.values())


@pytest.mark.parametrize("states", [{}, {"101": "CANCELLED"}])
def test_a_run_whose_jobs_have_ended_is_submitted_again(
    run: SlurmRun, cluster: StubSlurm, states: dict[str, str]
) -> None:
    """Whether SLURM has forgotten all of them or not."""
    run.submit()
    leave_exit_codes(run, 66)
    cluster.set_queue(states)
    assert len(run.submit()) == 10
    assert [run.exit_code(task) for task in run.jobs()] == [None] * 10


def test_the_probes_old_exit_code_does_not_count(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    leave_exit_codes(run, 66)
    cluster.set_queue(dict.fromkeys(first.values(), "FAILED"))
    run.submit()
    assert SlurmRuns(Slurm(), run.folder.parent).wait_for_probe(run, 0.1) is False
    assert cluster.cancelled() == []


def test_the_progress_of_an_earlier_submission_does_not_count(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    leave_exit_codes(run, 75)
    for task in first:
        (run.folder / task / "progress").write_text("900/1000")
    cluster.set_queue(dict.fromkeys(first.values(), "CANCELLED"))
    run.submit()
    state = SlurmRuns(Slurm(), run.folder.parent).state(RUN)
    assert [(node.task, node.progress) for node in state.nodes] == [(task, 0.0) for task in first]


def hear_signals() -> None:
    """Hear what the tests' own process may have been started to ignore, as a command behind nohup or ``&`` is."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def planning(run: SlurmRun, cluster: StubSlurm) -> Iterator[subprocess.Popen[bytes]]:
    """``submit.sh``, called by hand, while it plans; it goes on at the end of the block."""
    reached, gate = cluster.folder / "reached", cluster.folder / "gate"
    plan = cluster.python.read_text()
    wait = f"touch {reached}; for _ in {{1..200}}; do [ ! -e {gate} ] || break; sleep 0.05; done"
    cluster.python.write_text(plan.replace("\n", f"\n{wait}\n", 1))
    command = [str(run.scripts / "submit.sh"), RUN, str(run.folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=hear_signals)
    limit = time.monotonic() + 60
    while not reached.exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    yield process
    gate.touch()
    process.wait(60)
    cluster.python.write_text(plan)


def test_of_two_submissions_at_once_one_is_refused(run: SlurmRun, cluster: StubSlurm) -> None:
    with (
        planning(run, cluster) as first,
        pytest.raises(ConfigError, match=rf"already, by process {first.pid} of \w+ on "),
    ):
        run.submit()
    assert first.returncode == 0
    assert list(run.jobs().values()) == list(cluster.queue)
    assert len(cluster.queue) == 10 and cluster.cancelled() == []


def test_a_submission_that_is_killed_leaves_a_sentence(run: SlurmRun, cluster: StubSlurm) -> None:
    """The system's own signals let it tidy up; after SIGKILL the user is told what to remove."""
    with planning(run, cluster) as first:
        first.kill()
    with pytest.raises(ConfigError, match=f"or remove {run.folder}/submitting if it is gone"):
        run.submit()
    (run.folder / "submitting" / "by").unlink()
    (run.folder / "submitting").rmdir()
    assert len(run.submit()) == 10


def test_a_submission_that_ends_just_now_is_no_bare_error(run: SlurmRun, cluster: StubSlurm) -> None:
    """The other one's folder is there when this one makes its own, and gone when it looks who that is."""
    mkdir = cluster.programs / "mkdir"
    mkdir.write_text(
        f'#!/bin/sh\n{shutil.which("mkdir")} "$@" && case $1 in */submitting)\n'
        f' {shutil.which("mkdir")} "$@"; rmdir "$1"; exit 1; esac\n'
    )
    mkdir.chmod(0o755)
    with pytest.raises(ConfigError, match=rf"^run {RUN} was being submitted a moment ago; try again$"):
        run.submit()
    mkdir.write_text("#!/bin/sh\ncase $1 in -p) exit 0; esac; echo mkdir: No space left on device >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"^mkdir: No space left on device$"):
        run.submit()
    mkdir.unlink()
    assert len(run.submit()) == 10


@pytest.mark.parametrize("out", ["/dev/full", "&-"])
def test_a_list_that_nobody_reads_withdraws_no_job(run: SlurmRun, cluster: StubSlurm, out: str) -> None:
    command = ["bash", "-c", f'"$0" "$@" >{out}', str(run.scripts / "submit.sh"), RUN, str(run.folder)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    assert "cat: " in done.stderr
    assert list(run.jobs().values()) == list(cluster.queue)
    assert len(cluster.queue) == 10 and cluster.cancelled() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_submission_that_is_told_to_end_leaves_nothing(
    run: SlurmRun, cluster: StubSlurm, number: signal.Signals
) -> None:
    with planning(run, cluster) as first:
        os.killpg(first.pid, number)  # as a terminal does, and SLURM at the end of an interactive job
    assert first.returncode != 0 and cluster.queue == {}
    assert len(run.submit()) == 10


def test_a_refused_plan_leaves_the_list_and_the_exit_codes(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    leave_exit_codes(run, 0)
    cluster.set_queue(dict.fromkeys(first.values(), "COMPLETED"))
    cluster.set_plan("refused")
    with pytest.raises(ConfigError, match="another recipe"):
        run.submit()
    assert run.jobs() == first
    assert run.exit_code("train") == 0
    assert not (run.folder / "submitting").exists()


def test_nothing_to_do_leaves_the_list_of_the_finished_run(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    cluster.set_queue(dict.fromkeys(first.values(), "COMPLETED"))
    cluster.set_plan("skip")
    assert run.submit() == {}
    assert run.jobs() == first


def test_a_run_that_never_had_something_to_do_says_so(run: SlurmRun, cluster: StubSlurm) -> None:
    cluster.set_plan("skip")
    assert run.submit() == {}
    state = SlurmRuns(Slurm(), run.folder.parent).state(RUN)
    assert (state.phase, state.message) == ("Succeeded", "nothing to do, no job was submitted")


@pytest.mark.parametrize("room", [0, 4])
def test_never_half_a_run(run: SlurmRun, cluster: StubSlurm, room: int) -> None:
    """A queue that takes no more jobs withdraws those that it took; the probe refused leaves the old list."""
    old = run.submit()
    cluster.set_queue(dict.fromkeys(old.values(), "COMPLETED"))
    (cluster.folder / "full").write_text(str(10 + room))
    with pytest.raises(ConfigError, match="the queue is full"):
        run.submit()
    assert [state for state in cluster.queue.values() if state != "COMPLETED"] == ["CANCELLED"] * room
    assert set(run.jobs()) == (set(old) if room == 0 else {PROBE, *list(old)[1:room]})
    assert not (run.folder / "submitting").exists()


def test_a_controller_that_is_silent_is_no_empty_queue(run: SlurmRun, cluster: StubSlurm) -> None:
    first = run.submit()
    (cluster.programs / "squeue").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    with pytest.raises(UnavailableError, match="squeue: Unable to contact slurm controller"):
        run.submit()
    assert run.jobs() == first
