"""Qwen3 (dense): Llama's block with RMS norms on each query and key head and a head size of its own."""

from __future__ import annotations

from stagecoach.architectures.family import Family

QWEN3 = Family(
    name="qwen3",
    hf_class="Qwen3ForCausalLM",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    sliding_window="switched",
    qk_norm=True,
    only={"attention_bias": False},
)
