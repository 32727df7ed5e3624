"""Two machines whose training lies on S3: one is killed, and both go on from the last checkpoint, in whatever layout.

Blocks are small here, so that the tiny checkpoint has many and a machine can fetch those that its rank reads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.manifest import read_manifest
from stagecoach.storage.base import ObjectStore
from tests.distributed.test_launchers import start_two_machines
from tests.faults.test_train_kills import CONFIG, WAIT_SECONDS
from tests.faults.train_driver import TRAINED
from tests.seaweed import SeaweedServer
from tests.unit.stagecoach_train.tiny_inputs import tiny_inputs

SMALL_BLOCKS = Path(__file__).parent / "small_blocks"
BLOCK_BYTES = 512
FSDP = {"data_parallel": 2, "data_parallel_kind": "fsdp"}
PIPELINE = {"pipeline_parallel": 2}

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


class TwoMachines:
    """One training under a prefix of its own, on two machines with nothing in common but the bucket."""

    def __init__(self, server: SeaweedServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.store: ObjectStore = server.store(folder.name)
        tiny_inputs(self.store, folder / "make")
        self.starts = 0

    def start(self, layout: dict[str, Any]) -> list[subprocess.Popen[str]]:
        self.starts += 1
        return start_two_machines(
            self.store,
            self.folder / str(self.starts),
            {**CONFIG, "layout": layout},
            "run-a",
            **self.server.environ(),
            PYTHONPATH=os.pathsep.join([str(SMALL_BLOCKS), *filter(None, sys.path)]),
            TEST_BLOCK_BYTES=str(BLOCK_BYTES),
            TEST_RANGES_FILE=str(self.folder / f"ranges-{self.starts}"),
        )

    def finish(self, layout: dict[str, Any]) -> str:
        """Train to the end; returns what machine 0 said."""
        machines = self.start(layout)
        said = [machine.communicate(timeout=WAIT_SECONDS)[1] for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], said
        return said[0]

    def kill(self, node: int, layout: dict[str, Any]) -> None:
        """Train until there is a checkpoint, then take one machine away; the other has to notice by itself."""
        machines = self.start(layout)
        limit = time.monotonic() + WAIT_SECONDS
        while not any(info.key.endswith("/manifest.json") for info in self.store.list(f"{TRAINED}iter_")):
            assert all(machine.poll() is None for machine in machines) and time.monotonic() < limit
            time.sleep(0.05)
        os.killpg(machines[node].pid, signal.SIGKILL)
        said = [machine.communicate(timeout=WAIT_SECONDS)[1] for machine in machines]
        assert machines[node].returncode == -signal.SIGKILL, said
        assert machines[1 - node].returncode == 71, said

    @property
    def last_loss(self) -> float:
        manifest = read_manifest(self.store, TRAINED)
        assert manifest is not None
        return float(manifest.summary["last_loss"])

    @property
    def bits(self) -> dict[str, str]:
        """Digests of the last checkpoint's tensor files."""
        manifest = read_manifest(self.store, TRAINED)
        assert manifest is not None
        return {name: e.sha256 for name, e in manifest.objects.items() if name.startswith("iter_0000040/rank-")}

    def checkpoint_bytes_read(self, node: int) -> tuple[int, int]:
        """Bytes of rank files that a machine fetched in ranges in the last start, and their whole size in one checkpoint."""
        lines = (self.folder / f"ranges-{self.starts}-{node}").read_text().splitlines()
        ranges = {tuple(line.split()) for line in lines if "/rank-" in line}
        folders = {key.rsplit("/", 1)[0] for key, _, _ in ranges}
        assert len(folders) == 1, folders
        whole = sum(info.size_bytes for info in self.store.list(f"{folders.pop()}/rank-"))
        return sum(int(size) for _, _, size in ranges), whole


@pytest.fixture
def training(seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoMachines]:
    seaweed.use(monkeypatch)
    yield TwoMachines(seaweed, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(seaweed: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> TwoMachines:
    with pytest.MonkeyPatch.context() as patch:
        seaweed.use(patch)
        whole = TwoMachines(seaweed, tmp_path_factory.mktemp("undisturbed"))
        whole.finish(PIPELINE)
    return whole


@pytest.mark.parametrize("node", [0, 1])
def test_the_same_layout_goes_on_with_the_same_bits(node: int, training: TwoMachines, undisturbed: TwoMachines) -> None:
    training.kill(node, PIPELINE)
    assert "attempt 2, from iteration" in training.finish(PIPELINE)
    assert len(training.bits) == 2
    assert training.bits == undisturbed.bits
    fetched, whole = training.checkpoint_bytes_read(1)
    assert 0 < fetched < 0.7 * whole


@pytest.mark.parametrize("layout", [FSDP, {"tensor_parallel": 2}, {"data_parallel": 2}], ids=str)
def test_another_layout_goes_on_with_the_same_loss(
    layout: dict[str, Any], training: TwoMachines, undisturbed: TwoMachines
) -> None:
    training.kill(1, PIPELINE)
    assert "attempt 2, from iteration" in training.finish(layout)
    assert training.last_loss == pytest.approx(undisturbed.last_loss, abs=1e-5)
