"""Qwen2 and Qwen2.5 (dense): Llama's block with biases on the query, key and value projections."""

from __future__ import annotations

from stagecoach.architectures.family import Family

QWEN2 = Family(
    name="qwen2",
    hf_class="Qwen2ForCausalLM",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    sliding_window="switched",
    qkv_bias=True,
)
