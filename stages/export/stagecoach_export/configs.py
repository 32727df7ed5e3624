"""Writes config.json and generation_config.json: the base model's own, with what training has changed and
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagecoach.architectures.hf_config import with_both_spellings
from stagecoach.architectures.registry import FAMILIES, ModelSpec
from stagecoach.errors import DataError


def special_ids(tokenizer_config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of the tokenizer's special tokens: ``{"bos": 1, "eos": 32001, "pad": 0}``, without
    absent ones.

    Raises:
        DataError: A special token is not in the vocabulary.
    """
    found: dict[str, int] = {}
    for name in ("bos", "eos", "pad"):
        token = tokenizer_config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        if text not in ids:
            raise DataError(
                f"tokenizer_config.json: {name}_token {text!r} is not in tokenizer.json; make the tokenizer again"
            )
        found[name] = ids[text]
    return found


def stop_ids(base: Sequence[Mapping[str, Any] | None], special: Mapping[str, int]) -> list[int]:
    """Return every id that ends an answer: the tokenizer's EOS first, then those of the base model.

    Args:
        base: The base model's generation_config.json and config.json, as far as there are any.
        special: Of ``special_ids``.
    """
    found = [special["eos"]] if "eos" in special else []
    for config in base:
        value = (config or {}).get("eos_token_id")
        found.extend(at for at in (value if isinstance(value, list) else [value]) if isinstance(at, int))
    return list(dict.fromkeys(found))


def model_config(base: Mapping[str, Any], spec: ModelSpec, special: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        base: The base model's config.json.
        spec: The trained model's dimensions.
        special: Of ``special_ids``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    config = with_both_spellings(base, dtype)
    # It would send readers to the base model's repository; auto_map to code there.
    for key in ("_name_or_path", "auto_map"):
        config.pop(key, None)
    # The oldest conversions leave one of them out or spell it in another way; llama.cpp and vLLM choose by them.
    config["model_type"] = spec.family
    config["architectures"] = [FAMILIES[spec.family].hf_class]
    config["vocab_size"] = spec.vocab_size
    config["tie_word_embeddings"] = spec.tied_embeddings
    if "eos" in special:
        config["eos_token_id"] = special["eos"]
    _set_or_drop(config, "pad_token_id", special.get("pad"))
    return config


def generation_config(
    base_generation: Mapping[str, Any] | None, base: Mapping[str, Any], special: Mapping[str, int]
) -> dict[str, Any]:
    """Return the content of generation_config.json: every stop id, and the pad id unless it is one of
    them.
    """
    config = dict(base_generation or {})
    config.pop("_from_model_config", None)
    stops = stop_ids([base_generation, base], special)
    if stops:
        config["eos_token_id"] = stops
    bos = special.get("bos", base.get("bos_token_id"))
    _set_or_drop(config, "bos_token_id", bos)
    pad = special.get("pad")
    _set_or_drop(config, "pad_token_id", None if pad in stops else pad)
    return config


def _set_or_drop(config: dict[str, Any], key: str, value: int | None) -> None:
    if value is None:
        config.pop(key, None)
    else:
        config[key] = value
