"""The train section: what is refused, how long a training is, what enters a key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stagecoach.recipe.base import effect_of, result_fields
from stagecoach.recipe.train import Layout, TrainConfig


@pytest.mark.parametrize(
    ("epochs", "num_packs", "packs_per_step", "steps"),
    [
        (5, 4_833, 32, 756),  # 24,165 packs / 32 = 755.2; the original ran 760
        (5, 19_379, 32, 3_028),  # 96,895 / 32 = 3,027.97; the original ran 3,030
        (1, 64, 32, 2),  # exact: no step more
        (0.1, 30, 1, 3),  # 0.1 * 30 is 3.0000000000000004 in binary
        (0.01, 10, 32, 1),  # never none
        (18.6, 3_486_775, 1, 64_854_015),  # exact as well; in binary the product is 7e-9 above
    ],
)
def test_epochs_become_steps_without_the_originals_extra_one(
    epochs: float, num_packs: int, packs_per_step: int, steps: int
) -> None:
    config = TrainConfig(epochs=epochs, packs_per_step=packs_per_step)
    assert config.total_steps(num_packs) == steps


def test_steps_win_over_the_number_of_packs() -> None:
    assert TrainConfig(steps=7).total_steps(1_000_000) == 7


def test_three_epochs_and_three_percent_warmup_unless_told_otherwise() -> None:
    config = TrainConfig(packs_per_step=10)
    assert config.total_steps(1_000) == 300
    assert config.warmup_steps_of(300) == 9
    assert TrainConfig(warmup_steps=50).warmup_steps_of(300) == 50
    assert TrainConfig(warmup_share=0.1).warmup_steps_of(300) == 30


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 5, "epochs": 1.0}, "both steps (5) and epochs (1)"),
        ({"warmup_steps": 5, "warmup_share": 0.1}, "both warmup_steps and warmup_share"),
        ({"lr": 1e-5, "min_lr": 1e-4}, "min_lr 0.0001 is above lr 1e-05"),
        ({"moments_dtype": "fp64"}, "moments_dtype fp64 needs compute_dtype fp64"),
        ({"compute_dtype": "fp64", "gpus": 1}, "compute_dtype fp64 is for comparisons on CPU, got gpus 1"),
        ({"gpus": 4, "layout": {"tensor_parallel": 2}}, "the layout has 2 ranks"),
        ({"nodes": 2, "layout": {"data_parallel": 3}}, "3 ranks cannot be divided evenly over 2 nodes"),
        ({"layout": {"virtual_stages": 2}}, "interleaving needs at least two"),
        (
            {"packs_per_step": 6, "layout": {"data_parallel": 2, "pipeline_parallel": 2, "virtual_stages": 2}},
            "a number of micro-batches that its 2 ranks divide, got 3",
        ),
        (
            {"packs_per_step": 8, "micro_batch_packs": 3, "layout": {"pipeline_parallel": 2, "virtual_stages": 2}},
            "a number of micro-batches that its 2 ranks divide, got 3",
        ),
        ({"layout": {"zero_bubble": True}}, "there is no bubble"),
        (
            {"layout": {"zero_bubble": True, "pipeline_parallel": 2, "data_parallel": 2, "data_parallel_kind": "fsdp"}},
            "use sharded_optimizer",
        ),
        ({"gpus": 2, "layout": {"zero_bubble": True, "pipeline_parallel": 2}}, "set compile_blocks to false"),
        ({"betas": (0.9, 1.0)}, "less than 1"),
        ({"learning_rate": 1e-5}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_combinations_are_refused_with_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(fields)
    assert sentence in str(caught.value)


def test_the_layout_changes_no_key_but_the_numbers_do() -> None:
    placed = TrainConfig(
        layout=Layout(tensor_parallel=2, data_parallel=2), gpus=4, recompute="full", micro_batch_packs=2, keep_last=9
    )
    assert result_fields(placed) == {}
    assert result_fields(TrainConfig(moments_dtype="bf16", seed=3)) == {"seed": 3, "moments_dtype": "bf16"}


def test_the_result_fields_are_these() -> None:
    marked = {name for name, field in TrainConfig.model_fields.items() if effect_of(field) == "result"}
    assert marked == {
        "epochs", "steps", "packs_per_step", "seed", "lr", "min_lr", "schedule", "warmup_steps", "warmup_share",
        "decay_share", "first_update_at_zero", "betas", "eps", "weight_decay", "decay_embeddings", "clip_norm",
        "non_finite_step_budget", "compute_dtype", "matmul_precision", "moments_dtype",
    }  # fmt: skip


def test_a_config_survives_json() -> None:
    config = TrainConfig(steps=3, layout=Layout(pipeline_parallel=2, virtual_stages=2), recompute=("none", "full"))
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
