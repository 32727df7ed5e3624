"""``stagecoach check`` finds what a plan would find late."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.checks import check_recipe
from stagecoach_workflows.deployment import Deployment
from tests.unit.stagecoach_workflows.recipes import small_recipe


def test_pods_sized_for_another_model_are_refused_with_the_number_to_write(tmp_path: Path) -> None:
    recipe = small_recipe("model.num_parameters=7000000000")
    with pytest.raises(
        ConfigError, match=r"sized for 7,000,000,000 parameters, the model has \d.* num_parameters: \d+"
    ):
        check_recipe(recipe, str(tmp_path), Deployment())


def test_a_recipe_that_says_nothing_about_a_seed_model_is_right(tmp_path: Path) -> None:
    assert any(line.startswith("workflow: ") for line in check_recipe(small_recipe(), str(tmp_path), Deployment()))


def test_sizes_that_eight_bit_products_do_not_have_are_refused(tmp_path: Path) -> None:
    fp8 = ("train.matmul_precision=fp8_tensorwise", "train.compute_dtype=bf16", "model.source.intermediate_size=72")
    with pytest.raises(ConfigError, match="multiples of 16, got 72 as intermediate size of a rank"):
        check_recipe(small_recipe(*fp8), str(tmp_path), Deployment())
