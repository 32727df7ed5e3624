"""Two GPUs against one: both ways of data parallelism, tensor and pipeline parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagecoach.recipe.train import TrainConfig
from tests.distributed.ranks import run_ranks
from tests.distributed.training_cases import assemble, tiny_spec, train, train_layouts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor, sequence": {"layout": {"tensor_parallel": 2}},
    "tensor, sequence, gathered again": {"layout": {"tensor_parallel": 2}, "regather_activations": True},
    "tensor": {"layout": {"tensor_parallel": 2, "sequence_parallel": False}},
    "data, copy engine": {"layout": {"data_parallel": 2}},
    "data, NCCL": {"layout": {"data_parallel": 2}, "copy_engine_exchange": False},
    "fsdp": {"layout": {"data_parallel": 2, "data_parallel_kind": "fsdp"}},
    "pipeline": {"layout": {"pipeline_parallel": 2}},
    "interleaved": {"layout": {"pipeline_parallel": 2, "virtual_stages": 2}},
}


@pytest.mark.parametrize("fields", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_two_gpus_equal_one(fields: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    spec = tiny_spec(tied_embeddings=True)
    base = {"steps": 10, "lr": 1e-3, "compute_dtype": dtype, "recompute": "selective", "weight_decay": 0.1}
    expected_losses, pieces, norms = train(spec, TrainConfig.model_validate(base), device="cuda")
    expected = assemble(spec, pieces)
    config = TrainConfig.model_validate(base | fields)
    ranks = run_ranks(2, train_layouts, spec, [config], 10, "cuda", folder=tmp_path, backend="nccl")
    losses, _, gpu_norms = ranks[0][0]
    assert losses == pytest.approx(expected_losses, abs=1e-4 if dtype == "fp32" else 0.02)
    assert gpu_norms == pytest.approx(norms, rel=1e-3 if dtype == "fp32" else 0.03)
    found = assemble(spec, [piece for rank in ranks for piece in rank[0][1]])
    limit = 1e-4 if dtype == "fp32" else 0.05
    for name in {piece.name for piece in pieces}:
        ours, theirs = (x[f"{name}/weight"].astype(np.float64) for x in (found, expected))
        assert np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs), name
