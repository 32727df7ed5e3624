"""``stagecoach shell --runner slurm`` in a terminal: a shell on a compute node, in the folder that was named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import WAIT_SECONDS, Work
from tests.terminal import in_terminal

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def shell(work: Work, *arguments: str, typed: str) -> tuple[str, int]:
    """Call ``stagecoach shell`` in a terminal; return what it showed and its exit code."""
    command = [sys.executable, "-m", "stagecoach_workflows", "shell", "--runner", "slurm", *arguments]
    return in_terminal(command, typed, work.cluster.environ(), work.folder, WAIT_SECONDS)


def test_a_shell_on_a_node(work: Work, tmp_path: Path) -> None:
    here = tmp_path / "repo"
    here.mkdir()
    work.configure("tasks: {pack: {cpus: 2, memory_gib: 0.5}}")
    typed = 'echo "[$SLURM_JOB_NAME] [$SLURM_CPUS_PER_TASK] [$PWD]"; exit 7\n'
    shown, code = shell(work, "--stage", "pack", "--folder", str(here), typed=typed)
    assert f"[stagecoach-shell-pack] [2] [{here}]" in shown
    assert code == 7
    assert work.cluster.queue() == []


def test_a_shell_with_gpus(work: Work) -> None:
    work.configure("tasks: {train: {gpus: 2, gpu_type: a100, partition: 'main,gpu'}}")
    shown, code = shell(work, typed='echo "[$CUDA_VISIBLE_DEVICES] on [$SLURM_JOB_NODELIST]"; exit\n')
    assert "[0,1] on [g1]" in shown
    assert code == 0


def test_a_shell_that_no_node_has_room_for_is_refused(work: Work) -> None:
    work.configure("tasks: {train: {gpus: 8, partition: gpu}}")
    shown, code = shell(work, typed="")
    assert "train: 8 GPUs are asked for, but a node of partition gpu has at most 4" in shown
    assert code == 78
