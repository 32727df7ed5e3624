"""Every layout trains to the same weights as one rank: ten steps at peak rate 1e-3 in float64, and in fp32.

The global batches are the same; the last step is short, every fifth micro-batch has no target, the five layers do
not divide over the stages and the window is shorter than most documents. Layouts are not listed here: all products of
up to eight ranks are tried, in every kind of data, tensor and pipeline parallelism. What is compared are whole tensors
put together from the pieces of all ranks, which also proves that every element is written exactly once.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.architectures.registry import ModelSpec
from stagecoach.recipe.train import TrainConfig
from tests.distributed.every_layout import MAX_WORLD_SIZE, every_layout
from tests.distributed.ranks import run_ranks
from tests.distributed.training_cases import Arrays, assemble, config_of, tiny_spec, train, train_layouts, weight_error

FSDP = {"data_parallel_kind": "fsdp"}
TWO_RANKS: list[dict[str, Any]] = [
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2},
    {"pipeline_parallel": 2, "zero_bubble": True},
    {"data_parallel": 2, **FSDP},
    {"data_parallel": 2},
]
FEW_LAYERS, MORE_LAYERS = 5, 9
"""Neither divides over 2 or 4 stages; more than five stages need the larger number."""
MAX_WEIGHT_ERROR = {"fp64": 1e-9, "fp32": 1e-5}
MAX_LOSS_ERROR = 1e-5
MAX_NORM_ERROR = 1e-5  # relative


Trained = tuple[list[float], Arrays, list[float]]


@cache
def one_rank(dtype: str, spec: ModelSpec) -> Trained:
    """Train on one rank; returns losses, whole tensors and gradient norms."""
    losses, pieces, norms = train(spec, config_of(dtype))
    assert losses[-1] <= 0.8 * losses[0]
    return losses, assemble(spec, pieces), norms


def check(configs: list[TrainConfig], spec: ModelSpec, dtype: str, folder: Path) -> None:
    """Train layouts of one world size and compare each with one rank; names every one that differs too much."""
    losses, expected, norms = one_rank(dtype, spec)
    world_size = configs[0].layout.world_size
    limit_seconds = 300 + 120 * len(configs)
    ranks = run_ranks(world_size, train_layouts, spec, configs, 10, folder=folder, timeout_seconds=limit_seconds)
    wrong = []
    for index, config in enumerate(configs):
        found = assemble(spec, [piece for rank in ranks for piece in rank[index][1]])
        name = config.layout.model_dump_json(exclude_defaults=True)
        loss_error = np.abs(np.subtract([rank[index][0] for rank in ranks], losses)).max()  # NaN stays NaN
        norm_error = (np.abs(np.subtract([rank[index][2] for rank in ranks], norms)) / norms).max()
        errors = {
            key: weight_error(found[key], value, dtype) for key, value in expected.items() if key.endswith("/weight")
        }
        worst = max(errors, key=lambda key: errors[key])
        line = (
            f"{dtype} tied={spec.tied_embeddings} {name}: loss {loss_error:.1e}, weights {errors[worst]:.1e} ({worst}),"
            f" norm {norm_error:.1e}"
        )
        print(line, flush=True)  # `make test-distributed ARGS=-s` shows what was measured
        if not (
            loss_error <= MAX_LOSS_ERROR and norm_error <= MAX_NORM_ERROR and errors[worst] <= MAX_WEIGHT_ERROR[dtype]
        ):
            wrong.append(line)
    assert not wrong, "\n".join(wrong)


def configs_of(dtype: str, layouts: list[dict[str, Any]]) -> list[TrainConfig]:
    return [config_of(dtype, **layout) for layout in layouts]


@pytest.mark.distributed
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    check(configs_of("fp64", TWO_RANKS), tiny_spec(tied_embeddings=True), "fp64", tmp_path)


@pytest.mark.distributed
def test_rows_that_do_not_divide_over_the_data_parallel_ranks(tmp_path: Path) -> None:
    """61 rows over two ranks: 31 and 30."""
    layouts: list[dict[str, Any]] = [{"data_parallel": 2}, {"data_parallel": 2, **FSDP}]
    check(configs_of("fp64", layouts), tiny_spec(hidden_size=61), "fp64", tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("world_size", range(2, MAX_WORLD_SIZE + 1))
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["fp64", "fp32"])
def test_every_layout_equals_one_rank(tmp_path: Path, dtype: str, tied: bool, world_size: int) -> None:
    """In fp32 without zero-bubble, whose order of work float64 proves."""
    spec = tiny_spec(tied_embeddings=tied, num_layers=FEW_LAYERS)
    configs = [each for each in every_layout(spec, dtype, world_size) if dtype == "fp64" or not each.layout.zero_bubble]
    check(configs, spec, dtype, tmp_path)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [4, 6, 7, 8])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_layouts_of_more_stages_than_five_equal_one_rank(tmp_path: Path, tied: bool, world_size: int) -> None:
    spec = tiny_spec(tied_embeddings=tied, num_layers=MORE_LAYERS)
    fewer = every_layout(tiny_spec(num_layers=FEW_LAYERS), "fp64", world_size)
    check([config for config in every_layout(spec, "fp64", world_size) if config not in fewer], spec, "fp64", tmp_path)


def test_the_list_holds_every_product_of_eight_ranks_and_every_kind() -> None:
    layouts = [config.layout for config in every_layout(tiny_spec(num_layers=FEW_LAYERS), "fp64", 8)]
    sizes = {(each.data_parallel, each.tensor_parallel, each.pipeline_parallel) for each in layouts}
    assert sizes == {(8, 1, 1), (4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2), (2, 1, 4), (1, 2, 4)}
    kinds = {
        (each.data_parallel_kind, each.sequence_parallel, each.virtual_stages, each.zero_bubble)
        for each in layouts
        if each.data_parallel == each.tensor_parallel == each.pipeline_parallel == 2
    }
    # 2 x 2 x 4, less fsdp with zero-bubble, which the recipe refuses
    assert len(kinds) == 12
    assert len(layouts) == 43
    numbers = [len(every_layout(tiny_spec(num_layers=FEW_LAYERS), "fp64", size)) for size in range(2, 8)]
    assert numbers == [8, 4, 24, 4, 16, 2]
