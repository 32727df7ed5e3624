"""Llama 1, 2 and 3.x, CodeLlama, TinyLlama, SmolLM2: everything that says ``model_type: llama``."""

from __future__ import annotations

from stagecoach.architectures.family import Family

LLAMA = Family(
    name="llama",
    hf_class="LlamaForCausalLM",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    only={"attention_bias": False, "mlp_bias": False},
)
