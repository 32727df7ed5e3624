"""The whole train stage on one and on two GPUs: launcher, NCCL, checkpoints, and a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.outputs import Output
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.local import LocalStore
from stagecoach_train.run import run
from tests.unit.stagecoach_train.tiny_inputs import keeping_sigterm, tiny_inputs

TRAINED = "trained/tiny-0123456789abcdef/"
RECIPE: dict[str, Any] = {"steps": 12, "packs_per_step": 4, "lr": 1e-2, "min_lr": 1e-3, "save_every_steps": 4}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def train(folder: Path, **values: Any) -> Manifest:
    store = LocalStore(folder / "store")
    inputs = tiny_inputs(store, folder / "make")
    output = Output(store, TRAINED, folder / "output")
    with keeping_sigterm():
        run(TrainConfig.model_validate({**RECIPE, **values}), inputs, output, store)
    output.commit(task="train", key="0123456789abcdef", name="tiny", output_version=1)
    manifest = read_manifest(store, TRAINED)
    assert manifest is not None
    return manifest


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return train(tmp_path_factory.mktemp("cpu"), compute_dtype="fp32")


LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tensor": {"layout": {"tensor_parallel": 2}},
    "data": {"layout": {"data_parallel": 2}},
    "fsdp": {"layout": {"data_parallel": 2, "data_parallel_kind": "fsdp"}},
    "pipeline": {"layout": {"pipeline_parallel": 2}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gpu_training_agrees_with_the_cpu(layout: str, cpu: Manifest, tmp_path: Path) -> None:
    gpus = TrainConfig.model_validate(LAYOUTS[layout]).layout.world_size
    if torch.cuda.device_count() < gpus:
        pytest.skip("needs two NVIDIA GPUs")
    found = train(tmp_path, gpus=gpus, compute_dtype="fp32", **LAYOUTS[layout])
    assert found.summary["memory"]["measured_gib"] > 0
    for name in ("first_loss", "last_loss"):
        assert found.summary[name] == pytest.approx(cpu.summary[name], rel=1e-2)
    assert found.summary["heldout_last"]["loss"] == pytest.approx(cpu.summary["heldout_last"]["loss"], rel=1e-2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_resumed_gpu_training_has_the_same_bits(dtype: str, tmp_path: Path) -> None:
    config = {"gpus": 1, "compute_dtype": dtype, "deterministic": True}
    whole = train(tmp_path, **config, keep_last=9)
    store = LocalStore(tmp_path / "store")
    store.delete([TRAINED + "manifest.json"])
    for iteration in ("iter_0000008", "iter_0000012"):
        store.delete([info.key for info in store.list(TRAINED + iteration)])
    again = train(tmp_path, **config)
    assert sorted(again.summary["iterations"]) == [4, 8, 12]
    names = [name for name in whole.objects if name.startswith("iter_0000012/rank-")]
    assert [again.objects[name].sha256 for name in names] == [whole.objects[name].sha256 for name in names]
