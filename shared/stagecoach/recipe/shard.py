"""The shard section of a recipe: into how many files, one a rank, the native weights are cut."""

from __future__ import annotations

from pydantic import PositiveInt

from stagecoach.recipe.base import Section, result


class ShardConfig(Section):
    """How the weights are cut; what is left out is taken from ``train.layout``."""

    tensor_parallel: PositiveInt | None = result(None)
    """Ranks that share every matrix."""
    pipeline_parallel: PositiveInt | None = result(None)
    """Ranks that hold consecutive layers."""
    virtual_stages: PositiveInt | None = result(None)
    """Runs of layers on each pipeline rank (interleaved schedules); above 1 it needs a pipeline."""
