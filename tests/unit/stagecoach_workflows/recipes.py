"""A small valid recipe for tests, and what its sources resolve to, so that no test depends on a shipped recipe."""

from __future__ import annotations

from typing import Any

import yaml

from stagecoach.recipe.load import read_recipe
from stagecoach.recipe.recipe import Recipe

_VALUES: dict[str, Any] = {
    "name": "small",
    "model": {"name": "small-model", "source": {"kind": "seed", "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2}},
    "data": {"name": "two-sets", "sources": [{"name": "a", "source": {"kind": "embedded"}}]},
    "pack": {"pack_tokens": 512, "too_long": "error"},
    "train": {"steps": 8, "compute_dtype": "fp32"},
}


def recipe_values(**changes: Any) -> dict[str, Any]:
    """The values of the recipe with whole sections replaced."""
    return {**_VALUES, **changes}


def small_recipe(*overrides: str, **changes: Any) -> Recipe:
    """The recipe with ``PATH=VALUE`` settings laid over it."""
    return read_recipe(yaml.safe_dump(recipe_values(**changes)), "small.yaml", overrides)
