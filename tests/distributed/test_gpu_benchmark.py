"""The benchmark of four GPUs, rehearsed small in four CPU processes: nothing but the device is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_tp4_checkpoint_goes_on_as_fsdp4_with_the_same_losses() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--gpus", "4", "--small", "--rows", "tp4_to_fsdp4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    name, change = done.stdout.splitlines()[-1].split("=")
    assert name == "tp4_to_fsdp4_loss_change"
    assert float(change) <= 1e-5
