"""Mistral 7B v0.1 to v0.3 and everything else that says ``model_type: mistral``."""

from __future__ import annotations

from stagecoach.architectures.family import Family

MISTRAL = Family(
    name="mistral",
    hf_class="MistralForCausalLM",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
        "num_key_value_heads": 8,
        # A config.json without the key means 4,096; only an explicit null means no window (v0.2 and later).
        "sliding_window": 4096,
    },
    sliding_window="always",
)
