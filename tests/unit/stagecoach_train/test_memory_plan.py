"""Memory plans: against peaks measured on H100s, golden for 40 and 80 GB cards, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.memory_plan import GIB, MemoryPlan, plan_memory, usable_bytes

A100_40 = usable_bytes(int(39.39 * GIB))
H100_80 = usable_bytes(int(79.18 * GIB))
H200_141 = usable_bytes(int(139.8 * GIB))


def plan(layers: int, pack_tokens: int, capacity: int | None, **config: Any) -> MemoryPlan:
    spec = ModelSpec(
        family="mistral", num_layers=layers, hidden_size=4096, intermediate_size=14336, num_heads=32, num_kv_heads=8,
        head_dim=128, vocab_size=32_002, norm_eps=1e-5, rope_theta=10_000.0,
    )  # fmt: skip
    train = TrainConfig.model_validate({"steps": 1, "moments_dtype": "bf16"} | config)
    return plan_memory(train, spec, pack_tokens=pack_tokens, capacity_bytes=capacity)


@pytest.mark.parametrize(
    ("layers", "pack_tokens", "config", "measured_gib"),
    [
        # the study's runs with 12 bytes a parameter and accumulation 4
        (16, 16_384, {"layout": {"tensor_parallel": 2}, "recompute": "selective", "regather_activations": True}, 33.4),
        (32, 16_384, {"layout": {"tensor_parallel": 2}, "recompute": "selective"}, 72.4),
        (32, 8_192, {"layout": {"data_parallel": 2}, "recompute": "selective"}, 71.8),
        (32, 16_384, {"layout": {"data_parallel": 2}, "recompute": "selective_mlp"}, 69.2),
        # one H200, benchmarks/results/gpu-h200-*.json
        (32, 8_192, {"recompute": "selective"}, 104.89),
        (32, 8_192, {"recompute": "selective", "matmul_precision": "fp8_tensorwise"}, 104.89),
        (8, 8_192, {"recompute": "selective"}, 29.11),
        (8, 16_384, {"recompute": "none", "packs_per_step": 1}, 34.66),
        (8, 16_384, {"recompute": "none", "packs_per_step": 1, "matmul_precision": "fp8_tensorwise"}, 29.6),
    ],
)
def test_plans_are_within_five_percent_of_measured_peaks(
    layers: int, pack_tokens: int, config: dict[str, Any], measured_gib: float
) -> None:
    found = plan(layers, pack_tokens, H200_141, **({"packs_per_step": 8, "micro_batch_packs": 1} | config))
    assert abs(found.off_by(int(measured_gib * GIB))) <= 0.05


def modes(found: MemoryPlan) -> dict[str, int]:
    return {mode: found.recompute.count(mode) for mode in dict.fromkeys(found.recompute)}


@pytest.mark.parametrize(
    ("pack_tokens", "capacity", "config", "packs", "recompute"),
    [
        # four 40 GB cards, the original's layout: no matrix product is computed again
        (
            16_384,
            A100_40,
            {"layout": {"tensor_parallel": 4}, "regather_activations": True},
            1,
            {"selective": 21, "none": 11},
        ),
        # two and four 80 GB cards, data parallel
        (8_192, H100_80, {"layout": {"data_parallel": 2}}, 1, {"selective": 24, "none": 8}),
        (16_384, H100_80, {"layout": {"data_parallel": 4}}, 1, {"selective_mlp": 6, "selective": 26}),
        # packs of 4,096: two at once
        (4_096, H100_80, {"layout": {"data_parallel": 2}}, 2, {"selective": 24, "none": 8}),
        # no GPU: one pack, nothing computed again
        (512, None, {}, 1, {"none": 32}),
    ],
)
def test_golden_plans(
    pack_tokens: int, capacity: int | None, config: dict[str, Any], packs: int, recompute: dict[str, int]
) -> None:
    found = plan(32, pack_tokens, capacity, packs_per_step=32, **config)
    assert found.micro_batch_packs == packs
    assert modes(found) == recompute
    assert capacity is None or found.peak_bytes <= capacity


def test_what_cannot_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(32, 16_384, A100_40, layout={"data_parallel": 4}, moments_dtype="fp32")
    sentence = str(caught.value)
    assert "GiB too much; change one of: moments_dtype: bf16" in sentence
    assert "data_parallel_kind: fsdp" in sentence
    assert "weights" in sentence


def test_fewer_packs_a_micro_batch_are_advised_where_they_alone_help() -> None:
    fixed = {"layout": {"data_parallel": 2, "data_parallel_kind": "fsdp"}, "micro_batch_packs": 16}
    with pytest.raises(ConfigError, match=r"change one of: micro_batch_packs: auto \(now 16, 2 would fit\); a larger"):
        plan(32, 8_192, H100_80, **fixed)
    assert plan(32, 8_192, H100_80, **{**fixed, "micro_batch_packs": 2}).micro_batch_packs == 2
    with pytest.raises(ConfigError, match="change one of: a larger layout"):  # 64 layers do not fit anyhow
        plan(64, 8_192, H100_80, **fixed)


def test_the_table_names_every_item_and_the_choice() -> None:
    text = plan(32, 16_384, H100_80, layout={"tensor_parallel": 2, "pipeline_parallel": 2}).table()
    assert "pp 0     pp 1" in text
    for word in (
        "weights",
        "masters beyond weights",
        "moments",
        "gradients",
        "activations",
        "logits",
        "total",
        "usable",
    ):
        assert word in text
    assert "packs a micro-batch: 1; recompute: 32 x none" in text


def test_the_first_pipeline_rank_holds_the_most_micro_batches() -> None:
    found = plan(32, 4_096, H100_80, layout={"pipeline_parallel": 4}, micro_batch_packs=1, recompute="selective")
    activations = [rank.items["activations"] for rank in found.ranks]
    assert activations == [4 * activations[3], 3 * activations[3], 2 * activations[3], activations[3]]


def test_a_plan_replaces_auto_in_the_config() -> None:
    config = TrainConfig(steps=1)
    applied = plan(2, 512, None).applied_to(config)
    assert applied.micro_batch_packs == 1
    assert applied.recompute == ("none", "none")
