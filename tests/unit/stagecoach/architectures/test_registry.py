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


def published(family: str, sizes: tuple[int, int, int, int, int | None, int], **more: Any) -> dict[str, Any]:
    """A published config.json: (width, MLP width, layers, heads, key/value heads, vocabulary), and what else it says."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    dimensions = dict(zip((*names, "vocab_size"), sizes, strict=True))
    classes = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    shared = {"model_type": family, "architectures": [f"{classes[family]}ForCausalLM"], "hidden_act": "silu"}
    known = {name: size for name, size in dimensions.items() if size is not None}
    return {**shared, **known, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **more}


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {
    "Llama-1 7B": (published("llama", (4096, 11008, 32, 32, None, 32000)), 6_738_415_616),
    "Llama-2 7B": (published("llama", (4096, 11008, 32, 32, 32, 32000)), 6_738_415_616),
    "Llama-2 13B": (published("llama", (5120, 13824, 40, 40, 40, 32000)), 13_015_864_320),
    "Llama-2 70B": (published("llama", (8192, 28672, 80, 64, 8, 32000)), 68_976_648_192),
    "CodeLlama 7B": (published("llama", (4096, 11008, 32, 32, 32, 32016), rope_theta=1e6), 6_738_546_688),
    "Llama-3.1 8B": (
        published("llama", (4096, 14336, 32, 32, 8, 128256), rope_theta=5e5, rope_scaling=LLAMA3_SCALING),
        8_030_261_248,
    ),
    "Llama-3.2 1B": (
        published(
            "llama",
            (2048, 8192, 16, 32, 8, 128256),
            rope_theta=5e5,
            rope_scaling={**LLAMA3_SCALING, "factor": 32.0},
            tie_word_embeddings=True,
            head_dim=64,
        ),
        1_235_814_400,
    ),
    "TinyLlama": (published("llama", (2048, 5632, 22, 32, 4, 32000)), 1_100_048_384),
    "SmolLM2 135M": (published("llama", (576, 1536, 30, 9, 3, 49152), tie_word_embeddings=True), 134_515_008),
    "Mistral 7B v0.2": (
        published("mistral", (4096, 14336, 32, 32, 8, 32000), rope_theta=1e6, sliding_window=None),
        7_241_732_096,
    ),
    "Mistral 7B v0.3": (
        published("mistral", (4096, 14336, 32, 32, 8, 32768), rope_theta=1e6, sliding_window=None),
        7_248_023_552,
    ),
    "Qwen2.5 0.5B": (published("qwen2", (896, 4864, 24, 14, 2, 151936), tie_word_embeddings=True), 494_032_768),
    "Qwen3 0.6B": (
        published("qwen3", (1024, 3072, 28, 16, 8, 151936), tie_word_embeddings=True, head_dim=128),
        596_049_920,
    ),
}
"""Published models and how many parameters they are known to have."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_their_number_of_parameters(model: str) -> None:
    config, num_parameters = PUBLISHED[model]
    spec = ModelSpec.from_hf_config(config)
    assert spec.num_parameters == num_parameters
    assert (spec.rope_theta, spec.tied_embeddings) == (config.get("rope_theta", 1e4), config["tie_word_embeddings"])


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
