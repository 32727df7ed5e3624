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
from stagecoach.errors import DataError, shown

_SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
#: Dimensions are counted in 32 bits by everything that reads a model.
_MAX_WHOLE = 2**31 - 1
#: The smallest normal and the largest number of fp32, in which norms and frequencies are computed.
_FP32_TINY, _FP32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127


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
    if isinstance(new, Mapping) and new:
        if new.get("rope_theta") is not None:
            written["rope_theta"] = new["rope_theta"]
        scaling = {key: value for key, value in new.items() if key != "rope_theta"}
        kind = _rope_kind(new)
        written["rope_scaling"] = None if kind == "default" else {**scaling, "rope_type": kind}
    return written


def _family_of(config: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    model_type, classes = config.get("model_type"), config.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise DataError(f"config.json: expected names of classes under architectures, got {shown(classes)}")
    if model_type is None:
        # The oldest Llama conversions name only their class.
        model_type = next((family.name for family in families.values() if family.hf_class in (classes or [])), None)
    if not isinstance(model_type, str) or model_type not in families:
        named = model_type if model_type is not None else classes
        raise DataError(
            f"config.json: expected model_type {', '.join(families)}, got {shown(named)}; this architecture is not"
            " supported"
        )
    return families[model_type]


def _refuse_unsupported(values: Mapping[str, Any], family: Family) -> None:
    if values.get("hidden_act") != "silu":
        raise DataError(
            f"config.json: expected hidden_act 'silu', got {shown(values.get('hidden_act'))}; other"
            " activations are not supported"
        )
    for key, supported in family.only.items():
        if values.get(key, supported) != supported:
            raise DataError(
                f"config.json: expected {key} {supported!r} for {family.name}, got"
                f" {shown(values[key])}; that is not supported"
            )
    if values.get("quantization_config"):
        raise DataError("config.json: expected plain weights, got a quantization_config; take the unquantised model")
    if values.get("num_local_experts") or values.get("num_experts"):
        raise DataError(
            "config.json: expected a dense model, got a mixture of experts (num_local_experts); that is not supported"
        )


def _rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return theta and the normalised scaling of either spelling, or of both where they say the same."""
    given = {key: options for key in ("rope_parameters", "rope_scaling") if (options := _options(values, key))}
    readings = [_rope_of(options, values) for options in given.values() or ({},)]
    if readings[0] != readings[-1]:
        # transformers 5 takes rope_scaling, 4.x does not know rope_parameters.
        raise DataError(
            "config.json: expected rope_parameters and rope_scaling that say the same, or one of them, got"
            f" {shown(given['rope_parameters'])} and {shown(given['rope_scaling'])}"
        )
    return readings[0]


def _options(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    options = values.get(key)
    if options is not None and not isinstance(options, Mapping):
        raise DataError(f"config.json: expected an object or null for {key}, got {shown(options)}")
    return options or {}


def _rope_of(options: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return theta and the normalised scaling of one spelling; what it leaves out is looked up beside it."""
    if any(isinstance(value, Mapping) for value in options.values()):
        raise DataError(
            f"config.json: expected one set of RoPE options for all layers, got one for each of {', '.join(options)}"
        )
    theta = _number(values if options.get("rope_theta") is None else options, "rope_theta")
    for place in (values, options):
        if place.get("partial_rotary_factor", 1.0) not in (1, None):
            raise DataError(
                "config.json: expected partial_rotary_factor 1, got"
                f" {shown(place['partial_rotary_factor'])}; not supported"
            )
    others = {
        key: value
        for key, value in options.items()
        if key not in ("rope_theta", "rope_type", "type", "partial_rotary_factor") and value is not None
    }
    scaling = _scaling(_rope_kind(options), others)
    beside = values.get("original_max_position_embeddings")
    within = (scaling or {}).get("original_max_position_embeddings")
    if within is not None and beside is not None and beside != within:
        raise DataError(
            f"config.json: expected one original_max_position_embeddings, got {within} among the RoPE options and"
            f" {shown(beside)} beside them"
        )
    return theta, scaling


def _rope_kind(options: Mapping[str, Any]) -> str:
    """Return the kind of scaling under its new name or its old one."""
    kinds = [options[key] for key in ("rope_type", "type") if options.get(key) is not None] or ["default"]
    if kinds[0] != kinds[-1] or kinds[0] not in ("default", *_SCALING_KEYS):
        raise DataError(
            f"config.json: expected RoPE scaling default, {', '.join(_SCALING_KEYS)}, got"
            f" {' and '.join(shown(kind) for kind in kinds)}; that is not supported"
        )
    return str(kinds[0])


def _scaling(kind: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the options of a kind, checked and without those that have no effect; None is no scaling."""
    if kind == "default":
        if options:
            raise DataError(
                f"config.json: RoPE scaling default takes no options, got {', '.join(options)}; name their rope_type"
            )
        return None
    wanted = _SCALING_KEYS[kind]
    if missing := [key for key in wanted if key not in options]:
        raise DataError(f"config.json: RoPE scaling {kind}: expected {', '.join(wanted)}, missing {', '.join(missing)}")
    if unknown := sorted(key for key in options if key not in (*_SCALING_KEYS["llama3"], "attention_factor")):
        raise DataError(f"config.json: RoPE scaling {kind}: unknown options {', '.join(unknown)}")
    for key in wanted:
        if key == "original_max_position_embeddings":
            _whole(options, key)
        else:
            _number(options, key)
    if kind == "llama3" and options["low_freq_factor"] >= options["high_freq_factor"]:
        raise DataError(
            "config.json: RoPE scaling llama3: expected a low_freq_factor below high_freq_factor, got"
            f" {options['low_freq_factor']} and {options['high_freq_factor']}"
        )
    return {"rope_type": kind, **{key: options[key] for key in wanted}}


def _sliding_window(values: Mapping[str, Any], family: Family) -> int | None:
    if family.sliding_window == "none":
        return None
    is_on = family.sliding_window == "always" or _flag(values, "use_sliding_window")
    window = _whole(values, "sliding_window") if is_on and values.get("sliding_window") is not None else None
    kinds = _layer_kinds(values)
    if not kinds and family.sliding_window == "switched" and window is not None:
        # Layers from this one on have the window.
        first = _whole(values, "max_window_layers", minimum=0)
        num_layers = _whole(values, "num_hidden_layers")
        kinds = {"sliding_attention"} if first == 0 else {"full_attention"}
        if 0 < first < num_layers:
            kinds = {"full_attention", "sliding_attention"}
    if len(kinds) > 1:
        raise DataError(
            "config.json: expected the sliding window on all layers or on none, got a mixture; that is not supported"
        )
    if kinds == {"sliding_attention"} and window is None:
        raise DataError("config.json: layer_types: expected a sliding_window for sliding_attention, it is off or null")
    if kinds == {"full_attention"} and family.sliding_window == "switched":
        return None
    return window


def _layer_kinds(values: Mapping[str, Any]) -> set[str]:
    """Return the kinds of attention that ``layer_types`` names; none where the key is absent."""
    layer_types, num_layers = values.get("layer_types"), _whole(values, "num_hidden_layers")
    if layer_types is None:
        return set()
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or any(kind not in known for kind in layer_types)
    ):
        raise DataError(
            f"config.json: expected {num_layers} times {' or '.join(known)} under layer_types, got {shown(layer_types)}"
        )
    return set(layer_types)


def _whole(values: Mapping[str, Any], key: str, minimum: int = 1) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _MAX_WHOLE:
        raise DataError(
            f"config.json: expected a whole number of at least {minimum} and at most {_MAX_WHOLE} for {key}, got"
            f" {shown(value)}"
        )
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _FP32_TINY <= value <= _FP32_MAX:
        raise DataError(f"config.json: expected a positive number in the range of fp32 for {key}, got {shown(value)}")
    return float(value)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise DataError(f"config.json: expected true or false for {key}, got {shown(value)}")
    return value
