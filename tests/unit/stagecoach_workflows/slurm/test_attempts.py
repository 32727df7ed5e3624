"""What a batch script does after its stage, run as a job would be: again by requeue, or an exit code in its folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.slurm.config import SlurmConfig
from stagecoach_workflows.slurm.scripts import Scripts

LIMIT = 12
_PROGRAMS = {
    "squeue": "echo RUNNING",
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" >> $FOLDER/requeued',
    # the stage: exit code and progress are those of this attempt
    "stage": 'echo $PROGRESS/1000 > "$ARGO_PROGRESS_FILE"; exit $CODE',
}


def attempt(folder: Path, code: int, progress: int, restarts: int, **config: object) -> bool:
    """Run train once as job 7; return whether it is run again."""
    values = SlurmConfig.model_validate({"python": str(folder / "stage"), **config})
    Scripts.of(load_recipe("micro"), Deployment(), values, "s3://stagecoach").write(folder)
    for name, text in _PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restarts)}
    of_stage = {"CODE": str(code), "PROGRESS": str(progress), "FOLDER": str(folder)}
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    command = ["bash", str(folder / "train.sbatch"), "run", str(folder)]
    done = subprocess.run(command, env={**path, **job, **of_stage}, check=False, capture_output=True, text=True)
    left = folder / "train" / "exit"
    assert left.exists() or done.returncode == code, done.stderr
    again = (folder / "requeued").exists()
    (folder / "requeued").unlink(missing_ok=True)
    assert again != left.exists(), "a job that is run again has not ended"
    return again


@pytest.mark.parametrize("code", [69, 71, 75, 137, 143])
def test_failures_are_run_again_as_often_as_the_workflow_says(tmp_path: Path, code: int) -> None:
    again = [attempt(tmp_path, code, 0, restarts) for restarts in range(LIMIT + 1)]
    assert again == [True] * LIMIT + [False]


@pytest.mark.parametrize("code", [0, 1, 66, 70, 78, 79])
def test_other_codes_end_the_task(tmp_path: Path, code: int) -> None:
    assert not attempt(tmp_path, code, 0, 0)
    assert (tmp_path / "train" / "exit").read_text() == f"{code}\n"


def test_an_attempt_that_saved_more_than_all_before_is_no_failure(tmp_path: Path) -> None:
    """A limit of 24 hours is no limit of a training of any length; restarts by SLURM itself do not count either."""
    assert all(attempt(tmp_path, 75, 10 * restarts + 10, restarts) for restarts in range(3 * LIMIT))
    assert (tmp_path / "train" / "attempts").read_text() == f"0 {30 * LIMIT}\n"
    assert attempt(tmp_path, 0, 1000, 100) is False


def test_an_attempt_that_came_no_further_is_a_failure(tmp_path: Path) -> None:
    again = [attempt(tmp_path, 75, 400 if restarts % 2 else 10, restarts) for restarts in range(LIMIT + 3)]
    assert again == [True] * (LIMIT + 2) + [False]


def test_a_new_job_counts_from_the_start(tmp_path: Path) -> None:
    for restarts in range(LIMIT + 1):
        attempt(tmp_path, 69, 0, restarts)
    assert attempt(tmp_path, 69, 0, 0)


def test_a_module_that_is_missing_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "module").write_text('#!/bin/sh\n[ "$2" != nowhere/1.0 ]\n')
    (tmp_path / "module").chmod(0o755)
    assert not attempt(tmp_path, 0, 0, 0, modules=["cuda/12.8"])
    assert (tmp_path / "train" / "exit").read_text() == "0\n"
    assert not attempt(tmp_path, 0, 0, 0, modules=["cuda/12.8", "nowhere/1.0"])
    assert (tmp_path / "train" / "exit").read_text() == "78\n"
