"""Every layout of up to eight ranks that a model allows, found by trying all and asking the product's own checks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from pydantic import ValidationError

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError
from stagecoach.parallel.slicing import check_layout
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.parallel.shares import rank_layout
from tests.distributed.training_cases import config_of

MAX_WORLD_SIZE = 8


def every_layout(spec: ModelSpec, dtype: str, world_size: int) -> list[TrainConfig]:
    """Return the configuration of every legal layout of that many ranks: sizes, and kinds where an axis has more than
    one rank.
    """
    return [config for layout in _candidates(world_size) if (config := _legal(spec, dtype, layout)) is not None]


def _candidates(world_size: int) -> Iterator[dict[str, Any]]:
    """Yield all sizes, each with both kinds of data and tensor parallelism and every pipeline schedule."""
    for dp, tp, pp in product(range(1, world_size + 1), repeat=3):
        if dp * tp * pp != world_size:
            continue
        kinds = ("sharded_optimizer", "fsdp") if dp > 1 else ("sharded_optimizer",)
        shares_tokens = (True, False) if tp > 1 else (True,)
        schedules = tuple(product((1, 2), (False, True))) if pp > 1 else ((1, False),)
        for kind, sequence, (virtual_stages, zero_bubble) in product(kinds, shares_tokens, schedules):
            yield {
                "data_parallel": dp,
                "tensor_parallel": tp,
                "pipeline_parallel": pp,
                "data_parallel_kind": kind,
                "sequence_parallel": sequence,
                "virtual_stages": virtual_stages,
                "zero_bubble": zero_bubble,
            }


def _legal(spec: ModelSpec, dtype: str, layout: dict[str, Any]) -> TrainConfig | None:
    try:
        config = config_of(dtype, **layout)
        check_layout(spec, rank_layout(config))
    except (ValidationError, ConfigError):
        return None
    return config
