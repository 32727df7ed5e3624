"""What ``status`` says of a run, and what ``cancel`` ends, in every state that SLURM can give a job."""

from __future__ import annotations

import pytest

from stagecoach_workflows.slurm.client import Slurm
from stagecoach_workflows.slurm.runs import SlurmRun, SlurmRuns
from tests.unit.stagecoach_workflows.slurm.stub_slurm import RUN, StubSlurm

ENDED = ["BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"]
SAVING = ["RUNNING", "COMPLETING"]
HELD = ["PENDING", "CONFIGURING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"]


def write_run(run: SlurmRun, states: dict[str, str], exit_codes: dict[str, int]) -> None:
    """A run whose task ``pack`` is job ``1-pack``, and so on."""
    (run.folder / "jobs").write_text("".join(f"{task}\t1-{task}\n" for task in states))
    for task, code in exit_codes.items():
        (run.folder / task).mkdir()
        (run.folder / task / "exit").write_text(f"{code}\n")


@pytest.mark.parametrize(
    ("pack", "train", "exit_codes", "phase", "message"),
    [
        ("COMPLETED", "COMPLETED", {"pack": 0, "train": 0}, "Succeeded", ""),
        ("COMPLETED", "COMPLETED", {}, "Succeeded", ""),
        ("", "", {"pack": 0, "train": 0}, "Succeeded", ""),
        ("CANCELLED", "CANCELLED", {}, "Failed", "cancelled"),
        ("COMPLETED", "", {"pack": 0}, "Failed", "train: ended without an exit code; ask `sacct -j 1-train`"),
        ("CANCELLED", "", {}, "Failed", "train: ended without an exit code; ask `sacct -j 1-train`"),
        *(
            ("COMPLETED", state, {"pack": 0}, "Failed", f"train: ended without an exit code, SLURM says {state}; ask")
            for state in ("PREEMPTED", "TIMEOUT", "NODE_FAIL", "LAUNCH_FAILED")
        ),
        ("COMPLETED", "SUSPENDED", {"pack": 0}, "Running", ""),
        ("COMPLETED", "REQUEUE_HOLD", {"pack": 0, "train": 75}, "Running", ""),
        ("COMPLETED", "RESV_DEL_HOLD", {"pack": 0}, "Running", ""),
    ],
)
def test_the_state_of_a_run_names_its_cause(
    run: SlurmRun,
    cluster: StubSlurm,
    pack: str,
    train: str,
    exit_codes: dict[str, int],
    phase: str,
    message: str,
) -> None:
    states = {"pack": pack, "train": train}
    write_run(run, states, exit_codes)
    cluster.set_queue({f"1-{task}": state for task, state in states.items() if state})
    state = SlurmRuns(Slurm(), run.folder.parent).state(RUN)
    assert state.phase == phase
    assert state.message.startswith(message) and bool(state.message) == bool(message)


@pytest.mark.parametrize("at_once", [False, True])
def test_cancel_ends_whatever_has_not_ended(run: SlurmRun, cluster: StubSlurm, at_once: bool) -> None:
    """Of jobs that run, train may save; nothing else has anything to save."""
    states = {f"t{number}": state for number, state in enumerate([*ENDED, *SAVING, *HELD])}
    write_run(run, states, {})
    cluster.set_queue({f"1-{task}": state for task, state in states.items()})
    SlurmRuns(Slurm(), run.folder.parent).end(run, at_once=at_once)
    left = {states[job.removeprefix("1-")]: state for job, state in cluster.queue.items()}
    for state in ENDED:
        assert left[state] == state
    for state in HELD:
        assert left[state] == "CANCELLED", state
    running = [f"1-{task}" for task, state in states.items() if state in SAVING]
    signals = [line for line in cluster.cancelled() if "--signal=TERM" in line]
    assert signals == ([] if at_once else [f"--signal=TERM {job}" for job in running])
    assert left["RUNNING"] == ("CANCELLED" if at_once else "RUNNING")
