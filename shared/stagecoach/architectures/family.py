"""What sets one family of models apart, as data, so that a new family is one short file beside
``llama.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Native tensor (without ``layers.<i>.``) -> the Hub's tensors whose rows it holds; ``{layer}`` is the global
#: layer number.
LLAMA_TENSORS: Mapping[str, tuple[str, ...]] = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "attention_norm.weight": ("model.layers.{layer}.input_layernorm.weight",),
    "attention.qkv.weight": (
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layers.{layer}.self_attn.k_proj.weight",
        "model.layers.{layer}.self_attn.v_proj.weight",
    ),
    "attention.qkv.bias": (
        "model.layers.{layer}.self_attn.q_proj.bias",
        "model.layers.{layer}.self_attn.k_proj.bias",
        "model.layers.{layer}.self_attn.v_proj.bias",
    ),
    "attention.q_norm.weight": ("model.layers.{layer}.self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("model.layers.{layer}.self_attn.k_norm.weight",),
    "attention.output.weight": ("model.layers.{layer}.self_attn.o_proj.weight",),
    "mlp_norm.weight": ("model.layers.{layer}.post_attention_layernorm.weight",),
    "mlp.gate_up.weight": (
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
    ),
    "mlp.down.weight": ("model.layers.{layer}.mlp.down_proj.weight",),
    "final_norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}

#: Tensors that some checkpoints carry although they follow from config.json; dropped knowingly.
DERIVED_TENSORS: tuple[str, ...] = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"model\.rotary_emb\.inv_freq",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One family of decoder-only models; its dimensions are read from each model's config.json."""

    name: str
    """``model_type`` of config.json, and the name in the registry."""
    hf_class: str
    """The class in ``architectures`` of config.json."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers assumes for keys that a config.json leaves out."""
    sliding_window: Literal["none", "always", "switched"] = "none"
    """none: the family has no window, the key is ignored as transformers does; always: ``sliding_window``
    holds wherever it is not null; switched: only with ``use_sliding_window``."""
    qkv_bias: bool = False
    """Query, key and value projections have biases (the output projection never has)."""
    qk_norm: bool = False
    """Queries and keys are RMS-normalised a head, before RoPE."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Keys that are supported with one value alone, such as ``attention_bias: False``."""
    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LLAMA_TENSORS)
    """Native tensor -> Hub tensors."""
    dropped: tuple[str, ...] = DERIVED_TENSORS
    """Regular expressions of Hub tensors that are not needed."""
