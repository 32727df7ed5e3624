"""Reads a Hub ``config.json`` into dimensions, and writes it back so that transformers 4.5x and 5.x both
understand it.

Two spellings are in use. Up to transformers 4.x: ``rope_theta``, ``rope_scaling`` (its kind under ``type`` or
``rope_type``), ``torch_dtype``. From 5.0: ``rope_parameters`` (with ``rope_theta`` inside), ``dtype``. Both
are read; where the new one alone is there, the old one is written beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagecoach.architectures.family import Family
from stagecoach.errors import DataError

_SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def dimensions_from_hf_config(config: Mapping[str, Any], families: Mapping[str, Family]) -> dict[str, Any]:
    """Return the fields of ``ModelSpec`` that a Hub config describes.

    Raises:
        DataError: An unsupported family or option, by name; or a dimension that is missing or no number.
    """
    family = _family_of(config, families)
    values = {**family.defaults, **config}
    _refuse_unsupported(values, family)
    num_heads = _whole(values, "num_attention_heads")
    hidden_size = _whole(values, "hidden_size")
    head_dim = values.get("head_dim")
    if head_dim is None and hidden_size % num_heads:
        raise DataError(
            f"config.json: expected head_dim, or num_attention_heads ({num_heads}) that divides"
            f" hidden_size ({hidden_size})"
        )
    theta, scaling = _rope(values)
    return {
        "family": family.name,
        "num_layers": _whole(values, "num_hidden_layers"),
        "hidden_size": hidden_size,
        "intermediate_size": _whole(values, "intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": num_heads
        if values.get("num_key_value_heads") is None
        else _whole(values, "num_key_value_heads"),
        "head_dim": hidden_size // num_heads if head_dim is None else _whole(values, "head_dim"),
        "vocab_size": _whole(values, "vocab_size"),
        "norm_eps": _number(values, "rms_norm_eps"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding_window": _sliding_window(values, family),
        "tied_embeddings": _flag(values, "tie_word_embeddings"),
        "max_position_embeddings": _whole(values, "max_position_embeddings"),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
    }


def with_both_spellings(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a Hub config whose dtype is ``dtype`` and whose RoPE options both transformers lines find.

    transformers 5 reads the old spelling as well, so that one is what must never be missing: a 4.x that finds
    only ``rope_parameters`` falls back to a theta of 10,000 without a word.

    Args:
        config: Content of the base model's config.json, in either spelling.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    written = {**config, "torch_dtype": dtype, "dtype": dtype}
    new = config.get("rope_parameters")
    if isinstance(new, Mapping):
        if "rope_theta" in new:
            written["rope_theta"] = new["rope_theta"]
        scaling = {key: value for key, value in new.items() if key != "rope_theta"}
        written["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return written


def _family_of(config: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    model_type = config.get("model_type")
    if model_type is None:
        # The oldest Llama conversions name only their class.
        classes = config.get("architectures") or []
        model_type = next((family.name for family in families.values() if family.hf_class in classes), None)
    if model_type not in families:
        named = model_type if model_type is not None else config.get("architectures")
        raise DataError(
            f"config.json: expected model_type {', '.join(families)}, got {named!r}; this architecture is not supported"
        )
    return families[str(model_type)]


def _refuse_unsupported(values: Mapping[str, Any], family: Family) -> None:
    if values.get("hidden_act") != "silu":
        raise DataError(
            f"config.json: expected hidden_act 'silu', got {values.get('hidden_act')!r}; other"
            " activations are not supported"
        )
    for key, supported in family.only.items():
        if values.get(key, supported) != supported:
            raise DataError(
                f"config.json: expected {key} {supported!r} for {family.name}, got"
                f" {values[key]!r}; that is not supported"
            )
    if values.get("quantization_config"):
        raise DataError("config.json: expected plain weights, got a quantization_config; take the unquantised model")
    if values.get("num_local_experts") or values.get("num_experts"):
        raise DataError(
            "config.json: expected a dense model, got a mixture of experts (num_local_experts); that is not supported"
        )


def _rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return theta and the normalised scaling of either spelling."""
    new = values.get("rope_parameters")
    scaling = dict(new) if isinstance(new, Mapping) else dict(values.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise DataError(
            f"config.json: expected one set of RoPE options for all layers, got one for each of {', '.join(scaling)}"
        )
    theta = scaling.pop("rope_theta", None)
    if theta is None:
        theta = values.get("rope_theta")
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not theta > 0:
        raise DataError(f"config.json: expected a positive rope_theta, got {theta!r}")
    for place in (values, scaling):
        if place.get("partial_rotary_factor", 1.0) not in (1, None):
            raise DataError(
                f"config.json: expected partial_rotary_factor 1, got {place['partial_rotary_factor']!r}; not supported"
            )
    scaling.pop("partial_rotary_factor", None)
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    return float(theta), _scaling(str(kind), scaling)


def _scaling(kind: str, options: dict[str, Any]) -> dict[str, Any] | None:
    if kind == "default":
        return None
    if kind not in _SCALING_KEYS:
        raise DataError(
            f"config.json: expected RoPE scaling default, {', '.join(_SCALING_KEYS)}, got"
            f" {kind!r}; that is not supported"
        )
    wanted = _SCALING_KEYS[kind]
    if missing := [key for key in wanted if options.get(key) is None]:
        raise DataError(f"config.json: RoPE scaling {kind}: expected {', '.join(wanted)}, missing {', '.join(missing)}")
    if unknown := sorted(
        key for key in options if key not in (*_SCALING_KEYS["llama3"], "attention_factor") or options[key] is None
    ):
        raise DataError(f"config.json: RoPE scaling {kind}: unknown options {', '.join(unknown)}")
    return {"rope_type": kind, **{key: options[key] for key in wanted}}


def _sliding_window(values: Mapping[str, Any], family: Family) -> int | None:
    if family.sliding_window == "none":
        return None
    if family.sliding_window == "switched":
        if not values.get("use_sliding_window"):
            return None
        num_layers = _whole(values, "num_hidden_layers")
        full_layers = values.get("max_window_layers", num_layers)
        layer_types = values.get("layer_types")
        kinds = set(layer_types) if layer_types else {"sliding_attention"} if full_layers == 0 else {"full_attention"}
        if (layer_types is None and 0 < int(full_layers) < num_layers) or len(kinds) > 1:
            raise DataError(
                "config.json: expected the sliding window on all layers or on none, got a mixture;"
                " that is not supported"
            )
        if kinds == {"full_attention"}:
            return None
    window = values.get("sliding_window")
    return None if window is None else _whole(values, "sliding_window")


def _whole(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"config.json: expected a whole number of at least 1 for {key}, got {value!r}")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise DataError(f"config.json: expected a number for {key}, got {value!r}")
    return float(value)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise DataError(f"config.json: expected true or false for {key}, got {value!r}")
    return value
