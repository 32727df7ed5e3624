"""The train stage under another launcher, and on two machines that meet by the usual variables."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from tests.faults.train_driver import TRAINED
from tests.unit.stagecoach_train.tiny_inputs import tiny_inputs

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {
    "steps": 4,
    "packs_per_step": 2,
    "lr": 1e-2,
    "compute_dtype": "fp32",
    "layout": {"data_parallel": 2},
}

pytestmark = pytest.mark.distributed


def environ(folder: Path, **values: str) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "STAGECOACH_SCRATCH": str(folder), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **values}


def trained(store: LocalStore) -> Manifest:
    manifest = read_manifest(store, TRAINED)
    assert manifest is not None
    return manifest


@pytest.fixture(scope="module")
def under_our_launcher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the last checkpoint of the same training, started as anybody would."""
    return run_here([sys.executable], tmp_path_factory.mktemp("ours"))


def run_here(launch: list[str], folder: Path) -> dict[str, str]:
    """Train on this machine to the end; returns the digests of the last checkpoint's files."""
    store = LocalStore(folder / "store")
    tiny_inputs(store, folder / "make")
    done = subprocess.run(
        [*launch, "-m", "tests.faults.train_driver", store.url, "run-a", json.dumps(RECIPE)],
        cwd=ROOT,
        env=environ(folder / "scratch"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return last_checkpoint(store)


def test_under_torchrun_the_bits_are_those_of_our_launcher(tmp_path: Path, under_our_launcher: dict[str, str]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = run_here(launch, tmp_path)
    assert len(found) == 2
    assert found == under_our_launcher


def start_two_machines(
    store: ObjectStore, folder: Path, config: dict[str, Any], run_id: str, **variables: str
) -> list[subprocess.Popen[str]]:
    """Start a training on two machines that meet on this one, each with a scratch folder of its own; machine 0 first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    machines: list[subprocess.Popen[str]] = []
    for node in (1, 0):
        scratch = folder / f"scratch-{node}"
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "STAGECOACH_NODE_RANK": str(node)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.train_driver", store.url, run_id, json.dumps({**config, "nodes": 2})],
            cwd=ROOT,
            env=environ(scratch, **meeting, **variables),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        machines.insert(0, process)
    return machines


def run_on_two_machines(store: LocalStore, folder: Path, config: dict[str, Any], run_id: str) -> list[str]:
    """Train on two machines to the end; returns what they said, machine 0 first."""
    machines = start_two_machines(store, folder, config, run_id)
    said = [machine.communicate(timeout=600)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    return said


def last_checkpoint(store: LocalStore) -> dict[str, str]:
    """Digests of the files of the last iteration."""
    objects = trained(store).objects
    return {name: entry.sha256 for name, entry in objects.items() if name.startswith("iter_0000004/rank-")}


def test_on_two_machines_the_bits_are_those_of_one(tmp_path: Path, under_our_launcher: dict[str, str]) -> None:
    store = LocalStore(tmp_path / "store")
    tiny_inputs(store, tmp_path / "make")
    run_on_two_machines(store, tmp_path, RECIPE, "run-a")
    assert last_checkpoint(store) == under_our_launcher


@pytest.mark.slow
def test_two_machines_go_on_from_a_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    """Each machine reads the parts of the checkpoint that its own rank holds, and no shards."""
    store = LocalStore(tmp_path / "store")
    tiny_inputs(store, tmp_path / "make")
    recipe = {**RECIPE, "layout": {"pipeline_parallel": 2}, "save_every_steps": 2}
    run_on_two_machines(store, tmp_path, recipe, "run-a")
    expected = last_checkpoint(store)
    keys = [info.key for info in store.list(TRAINED)]
    store.delete([key for key in keys if key == f"{TRAINED}manifest.json" or "iter_0000004" in key])
    said = run_on_two_machines(store, tmp_path, recipe, "run-a")
    assert "attempt 2, from iteration 2" in said[0]
    assert last_checkpoint(store) == expected
