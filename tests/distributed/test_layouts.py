"""Every layout trains to the same weights as one rank: ten steps at peak rate 1e-3 in float64, and in fp32.

The global batches are the same; the last step is short, every fifth micro-batch has no target, the five layers do
not divide over the stages and the window is shorter than most documents. What is compared are whole tensors put
together from the pieces of all ranks, which also proves that every element is written exactly once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stagecoach.recipe.train import TrainConfig
from tests.distributed.ranks import run_ranks
from tests.distributed.training_cases import assemble, config_of, tiny_spec, train, train_layouts

FSDP = {"data_parallel_kind": "fsdp"}
WITHOUT_SP = {"sequence_parallel": False}
ZERO_BUBBLE = {"zero_bubble": True}
TWO_RANKS: list[dict[str, Any]] = [
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2},
    {"pipeline_parallel": 2, **ZERO_BUBBLE},
    {"data_parallel": 2, **FSDP},
    {"data_parallel": 2},
]
MORE: list[dict[str, Any]] = [
    {"tensor_parallel": 2, **WITHOUT_SP},
    {"pipeline_parallel": 2, "virtual_stages": 2},
    {"tensor_parallel": 4},
    {"pipeline_parallel": 4},
    {"data_parallel": 4},
    {"data_parallel": 4, **FSDP},
    {"data_parallel": 2, "tensor_parallel": 2},
    {"data_parallel": 2, "tensor_parallel": 2, **FSDP, **WITHOUT_SP},
    {"data_parallel": 2, "pipeline_parallel": 2},
    {"data_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2, **FSDP},
    {"tensor_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2},
    {"pipeline_parallel": 2, "virtual_stages": 2, **ZERO_BUBBLE},
    {"pipeline_parallel": 4, **ZERO_BUBBLE},
    {"tensor_parallel": 2, "pipeline_parallel": 2, **ZERO_BUBBLE},
    {"data_parallel": 2, "tensor_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2, **ZERO_BUBBLE},
    {"data_parallel": 2, "tensor_parallel": 2, "pipeline_parallel": 2},
    {"data_parallel": 2, "tensor_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2, **FSDP},
]
MAX_WEIGHT_ERROR = {"fp64": 1e-9, "fp32": 1e-5}
MAX_LOSS_ERROR = 1e-5


def by_world_size(configs: list[TrainConfig]) -> dict[int, list[TrainConfig]]:
    """Group, so that processes are started once for each number of ranks."""
    groups: dict[int, list[TrainConfig]] = {}
    for config in configs:
        groups.setdefault(config.layout.world_size, []).append(config)
    return groups


def check(layouts: list[dict[str, Any]], dtype: str, folder: Path, *, tied: bool, **dimensions: int) -> None:
    """Train all layouts and compare each with one rank."""
    spec = tiny_spec(tied_embeddings=tied, **dimensions)
    losses, pieces, norms = train(spec, config_of(dtype))
    assert losses[-1] <= 0.8 * losses[0]
    expected = assemble(spec, pieces)
    for world_size, configs in by_world_size([config_of(dtype, **layout) for layout in layouts]).items():
        home = folder / str(world_size)
        home.mkdir()
        ranks = run_ranks(world_size, train_layouts, spec, configs, 10, folder=home, timeout_seconds=900)
        for index, config in enumerate(configs):
            found = assemble(spec, [piece for rank in ranks for piece in rank[index][1]])
            name = config.layout.model_dump_json(exclude_defaults=True)
            loss_error = max(np.abs(np.subtract(rank[index][0], losses)).max() for rank in ranks)
            errors = {
                key: error(found[key], value, dtype) for key, value in expected.items() if key.endswith("/weight")
            }
            worst = max(errors, key=lambda key: errors[key])
            # `make test-distributed ARGS=-s` shows what was measured
            print(f"{dtype} tied={tied} {name}: loss {loss_error:.1e}, weights {errors[worst]:.1e} ({worst})")
            assert loss_error <= MAX_LOSS_ERROR, name
            assert all(rank[index][2] == pytest.approx(norms, rel=1e-5) for rank in ranks), name
            assert errors[worst] <= MAX_WEIGHT_ERROR[dtype], f"{name}: {worst}"


def error(found: npt.NDArray[Any], expected: npt.NDArray[Any], dtype: str) -> float:
    """Absolute in float64, relative Frobenius norm in fp32."""
    difference = found.astype(np.float64) - expected
    if dtype == "fp64":
        return float(np.abs(difference).max())
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


@pytest.mark.distributed
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    check(TWO_RANKS, "fp64", tmp_path, tied=True)


@pytest.mark.distributed
def test_rows_that_do_not_divide_over_the_data_parallel_ranks(tmp_path: Path) -> None:
    """61 rows over two ranks: 31 and 30."""
    check([{"data_parallel": 2}, {"data_parallel": 2, **FSDP}], "fp64", tmp_path, tied=False, hidden_size=61)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_every_layout_equals_one_rank(tmp_path: Path, dtype: str, tied: bool) -> None:
    check(TWO_RANKS + MORE, dtype, tmp_path, tied=tied)
