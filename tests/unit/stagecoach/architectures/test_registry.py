"""Dimensions from config.json in every spelling, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.errors import DataError
from tests.tiny_models import CONFIGS, spec_of

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


class TestReadingConfig:
    def test_mistral_7b(self) -> None:
        spec = ModelSpec.from_hf_config(MISTRAL_7B)
        assert (spec.head_dim, spec.qkv_rows, spec.sliding_window) == (128, 6144, 4096)
        assert spec.num_parameters == 7_241_732_096

    def test_a_missing_window_of_mistral_is_4096_and_null_is_none(self) -> None:
        without = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
        assert ModelSpec.from_hf_config(without).sliding_window == 4096
        assert ModelSpec.from_hf_config({**MISTRAL_7B, "sliding_window": None}).sliding_window is None

    def test_the_oldest_llama_has_no_kv_heads_theta_or_model_type(self) -> None:
        old = {
            key: value for key, value in CONFIGS["llama-2"].items() if key not in ("num_key_value_heads", "model_type")
        }
        spec = ModelSpec.from_hf_config(old)
        assert (spec.family, spec.num_kv_heads, spec.rope_theta) == ("llama", 4, 10_000.0)

    @pytest.mark.parametrize(
        ("rope", "expected"),
        [
            ({"rope_theta": 5e5, "rope_scaling": None}, (5e5, None)),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, (1e6, None)),
            ({"rope_scaling": {"type": "linear", "factor": 4.0}}, (1e4, {"rope_type": "linear", "factor": 4.0})),
            (
                {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}, "rope_theta": 9.0},
                (7.0, {"rope_type": "linear", "factor": 2.0}),
            ),
        ],
    )
    def test_both_spellings_of_rope(self, rope: dict[str, Any], expected: tuple[float, Any]) -> None:
        plain = {key: value for key, value in CONFIGS["llama-2"].items() if not key.startswith("rope")}
        spec = ModelSpec.from_hf_config({**plain, **rope})
        assert (spec.rope_theta, spec.rope_scaling) == expected

    def test_a_window_of_qwen_needs_its_switch(self) -> None:
        off = {**CONFIGS["qwen2"], "sliding_window": 8, "use_sliding_window": False}
        on = {**CONFIGS["qwen2"], "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}
        assert ModelSpec.from_hf_config(off).sliding_window is None
        assert ModelSpec.from_hf_config(on).sliding_window == 8

    @pytest.mark.parametrize("family", CONFIGS)
    def test_json_and_back(self, family: str) -> None:
        assert ModelSpec.from_json(spec_of(family).to_json()) == spec_of(family)


class TestRefusing:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "mixtral"}, "got 'mixtral'"),
            ({"hidden_act": "gelu"}, "hidden_act 'silu', got 'gelu'"),
            ({"attention_bias": True}, "attention_bias False for llama, got True"),
            ({"num_local_experts": 8}, "mixture of experts"),
            ({"quantization_config": {"bits": 4}}, "quantization_config"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "got 'yarn'"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "missing low_freq_factor"),
            ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "unknown options beta"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 1, got 0.5"),
            ({"num_hidden_layers": None}, "num_hidden_layers, got None"),
            ({"num_attention_heads": 5}, "num_attention_heads \\(5\\) that divides hidden_size \\(32\\)"),
            ({"num_key_value_heads": 3}, "got 3 and 4"),
            ({"head_dim": 7}, "even number"),
            ({"tie_word_embeddings": "yes"}, "true or false for tie_word_embeddings"),
        ],
    )
    def test_by_name(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            spec_of("llama-2", **changes)

    def test_a_window_on_some_layers_only(self) -> None:
        with pytest.raises(DataError, match="on all layers or on none"):
            spec_of("qwen2", use_sliding_window=True, max_window_layers=1)


class TestNativeTensors:
    def test_an_untied_model_has_a_head(self) -> None:
        names = [tensor.name for tensor in native_tensors(spec_of("llama-2", num_hidden_layers=1))]
        assert names == [
            "embedding.weight",
            "layers.0.attention_norm.weight",
            "layers.0.attention.qkv.weight",
            "layers.0.attention.output.weight",
            "layers.0.mlp_norm.weight",
            "layers.0.mlp.gate_up.weight",
            "layers.0.mlp.down.weight",
            "final_norm.weight",
            "head.weight",
        ]

    def test_biases_and_head_norms_where_the_family_has_them(self) -> None:
        qwen2 = {tensor.part for tensor in native_tensors(spec_of("qwen2"))}
        qwen3 = {tensor.part: tensor.shape for tensor in native_tensors(spec_of("qwen3"))}
        assert "attention.qkv.bias" in qwen2
        assert "head.weight" not in qwen2
        assert qwen3["attention.q_norm.weight"] == qwen3["attention.k_norm.weight"] == (16,)
