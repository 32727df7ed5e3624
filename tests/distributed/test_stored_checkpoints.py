"""A checkpoint that one layout committed to a store is continued by every other one, and by its own bit for bit.

What runs is all of a rank's part of the train stage but the launcher: every byte is checked, read by rectangle, trained
on, evaluated and committed again. Ranks of one world size stay up for all trainings of that size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from stagecoach.architectures.registry import native_tensors
from stagecoach.manifest import read_manifest
from stagecoach.metrics_file import every_record
from stagecoach.outputs import open_input
from stagecoach.paths import checkpoint_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.local import LocalStore
from stagecoach_train.assemble import assemble
from stagecoach_train.inputs import check_files
from stagecoach_train.job import Assignment, Job
from stagecoach_train.ranks import Ranks
from stagecoach_train.signals import StopRequest
from stagecoach_train.sources import CheckpointSource
from stagecoach_train.train_state import CheckpointRef
from tests.distributed.ranks import run_ranks
from tests.distributed.training_cases import leave_groups, weight_error
from tests.unit.stagecoach_train.tiny_inputs import SPEC, tiny_inputs

FSDP = {"data_parallel": 2, "data_parallel_kind": "fsdp"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "pp2": {"pipeline_parallel": 2},
    "tp2": {"tensor_parallel": 2},
    "dp2": {"data_parallel": 2},
    "fsdp2": FSDP,
    "tp2-pp2": {"tensor_parallel": 2, "pipeline_parallel": 2},
    "dp2-pp2-interleaved": {"data_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2},
    "fsdp2-pp2": {**FSDP, "pipeline_parallel": 2},
    "fsdp2-tp2": {**FSDP, "tensor_parallel": 2},
}
"""Those of one world size stand together."""
SAVED, LAST = 3, 6
FIVE_LAYERS = replace(SPEC, num_layers=5)
"""They do not divide over two stages, nor over four runs."""
MAX_LOSS_ERROR = 1e-5
MAX_WEIGHT_ERROR = {"fp64": 1e-9, "fp32": 1e-5}

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Training:
    """One attempt at the training of a source layout.

    Attributes:
        source: The layout whose training this is.
        layout: The layout that does this attempt.
        attempt: Its number; the first one begins with the shards, the others with the first one's checkpoint.
    """

    source: str
    layout: str
    attempt: int

    @property
    def trained(self) -> str:
        return f"trained/{self.source}-0123456789abcdef/"

    def config(self, dtype: str) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "steps": LAST,
                "packs_per_step": 4,
                "lr": 1e-3,
                "warmup_steps": 0,
                "compute_dtype": dtype,
                "moments_dtype": "fp64" if dtype == "fp64" else "fp32",
                "eps": 1e-6,  # far above rounding noise, see training_cases.config_of
                "save_every_steps": SAVED,
                "layout": LAYOUTS[self.layout],
            }
        )


def train_all(folder: Path, dtype: str, trainings: list[Training]) -> None:
    """Do one attempt after the other on this rank."""
    store = LocalStore(folder / "store")
    shared: Any = HashStore()
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if size > 1:
        hosting = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False) if rank == 0 else None
        port = [hosting.port if hosting else 0]
        dist.broadcast_object_list(port)
        shared = hosting or TCPStore("127.0.0.1", port[0], size, is_master=False)
    for number, training in enumerate(trainings):
        resume = None if training.attempt == 1 else CheckpointRef(SAVED, 1)
        job = Job(
            store_url=store.url,
            trained=training.trained,
            config=training.config(dtype),
            inputs={name: f"{name}/tiny-0123456789abcdef/" for name in ("shards", "packed")},
            scratch=folder / f"scratch-{training.source}-{training.attempt}-{rank}",
            assignment=Assignment(training.attempt, resume),
        )
        job = replace(job, files=check_files(job, store, None))
        ranks = Ranks(rank, size, PrefixStore(str(number), shared), 120)
        assemble(job, store, ranks, torch.device("cpu"), StopRequest()).run()
        ranks.largest([0.0])
        if size > 1:
            leave_groups()


def run_all(folder: Path, dtype: str, trainings: list[Training]) -> None:
    """Do all attempts, those of one world size in the same processes."""
    for size, some in groupby(trainings, lambda training: training.config(dtype).layout.world_size):
        if size == 1:
            train_all(folder, dtype, list(some))
            continue
        home = folder / f"ranks-{size}-{len(list(folder.iterdir()))}"
        home.mkdir()
        run_ranks(size, train_all, folder, dtype, list(some), folder=home, timeout_seconds=1200)


class Result:
    """What an attempt left in the store."""

    def __init__(self, folder: Path, training: Training) -> None:
        self.store, self.training = LocalStore(folder / "store"), training
        self.prefix = checkpoint_prefix(training.trained, LAST, training.attempt)
        self.scratch = folder / "read"

    @property
    def losses(self) -> list[float]:
        """Loss of each step that this attempt did."""
        records = every_record(self.store, self.training.trained)
        return [r["loss"] for r in records if r["attempt"] == self.training.attempt and r["kind"] == "step"]

    @property
    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Whole tensors of the last checkpoint."""
        source = CheckpointSource(open_input(self.store, self.prefix, self.scratch).path)
        shapes = {tensor.name: tensor.shape for tensor in native_tensors(FIVE_LAYERS)}
        return {name: source(name, "weight", (0, shape[0]), None) for name, shape in shapes.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the files of all ranks, weights and moments."""
        manifest = read_manifest(self.store, self.prefix)
        assert manifest is not None
        return {name: entry.sha256 for name, entry in manifest.objects.items() if name.startswith("rank-")}


@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_every_layout_goes_on_from_the_checkpoint_of_every_other(dtype: str, tmp_path: Path) -> None:
    tiny_inputs(LocalStore(tmp_path / "store"), tmp_path / "make", spec=FIVE_LAYERS)
    firsts = {source: Training(source, source, 1) for source in LAYOUTS}
    run_all(tmp_path, dtype, list(firsts.values()))
    resumed = [Training(source, layout, 2 + number) for number, layout in enumerate(LAYOUTS) for source in LAYOUTS]
    run_all(tmp_path, dtype, resumed)
    straight = Result(tmp_path, firsts["one"])
    expected, losses = straight.weights, straight.losses
    assert len(losses) == LAST
    wrong = []
    for training in resumed:
        result = Result(tmp_path, training)
        assert len(result.losses) == LAST - SAVED
        loss_error = np.abs(np.subtract(result.losses, losses[SAVED:])).max()
        errors = {name: weight_error(found, expected[name], dtype) for name, found in result.weights.items()}
        worst = max(errors, key=lambda name: errors[name])
        line = f"{dtype} {training.source} -> {training.layout}: loss {loss_error:.1e}, weights {errors[worst]:.1e} ({worst})"
        print(line, flush=True)
        is_same = (
            training.layout != training.source or result.digests == Result(tmp_path, firsts[training.source]).digests
        )
        if not (loss_error <= MAX_LOSS_ERROR and errors[worst] <= MAX_WEIGHT_ERROR[dtype] and is_same):
            wrong.append(line + ("" if is_same else ", other bits than without a stop"))
    assert not wrong, "\n".join(wrong)
