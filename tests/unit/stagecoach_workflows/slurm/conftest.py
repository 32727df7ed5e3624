"""The micro recipe beside a cluster whose jobs are in the states that a test gives them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.slurm.config import SlurmConfig
from stagecoach_workflows.slurm.runs import SlurmRun, find_run
from stagecoach_workflows.slurm.scripts import Scripts
from tests.unit.stagecoach_workflows.slurm.stub_slurm import RUN, StubSlurm


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubSlurm:
    stub = StubSlurm(tmp_path / "cluster")
    tasks = Scripts.of(load_recipe("micro"), Deployment(), SlurmConfig(), "s3://stagecoach").tasks
    stub.install([task.name for task in tasks if task.name not in ("probe", "notify")])
    monkeypatch.setenv("PATH", f"{stub.programs}:{os.environ['PATH']}")
    return stub


@pytest.fixture
def run(cluster: StubSlurm, tmp_path: Path) -> SlurmRun:
    """The micro recipe, ready to be submitted."""
    found = find_run(tmp_path, RUN)
    config = SlurmConfig(python=str(cluster.python))
    Scripts.of(load_recipe("micro"), Deployment(), config, "s3://stagecoach").write(found.scripts)
    return found
