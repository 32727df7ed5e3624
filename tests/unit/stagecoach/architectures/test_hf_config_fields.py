"""Fields of config.json with values that no model has: a sentence about the field, or what transformers reads."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from stagecoach.architectures import hf_config
from stagecoach.architectures.hf_config import with_both_spellings
from stagecoach.architectures.registry import FAMILIES, ModelSpec
from stagecoach.errors import DataError
from tests.tiny_models import CONFIGS

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
INFINITE = [math.inf, -math.inf, math.nan]
VALUES: list[Any] = [None, [], {}, "a", "2", "", -1, 0, 10**400, 10**12, 1e300, *INFINITE, True, False, [1], {"a": 1}]

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "scaling as text": ("llama-2", {"rope_scaling": "linear"}, "an object or null for rope_scaling, got 'linear'"),
    "parameters as a list": ("llama-2", {"rope_parameters": [1]}, r"an object or null for rope_parameters, got \[1\]"),
    "type as a list": ("llama-2", {"model_type": ["mistral"]}, r"expected model_type llama, .* got \['mistral'\]"),
    "classes as a number": ("llama-2", {"architectures": 5}, "names of classes under architectures, got 5"),
    "theta beyond floats": ("llama-2", {"rope_theta": 10**400}, r"rope_theta, got 1000+\.\.\.0+"),
    "infinite theta": ("llama-2", {"rope_theta": math.inf}, "rope_theta, got inf"),
    "theta beyond fp32": ("llama-2", {"rope_theta": 1e39}, r"rope_theta, got 1e\+39"),
    "epsilon beyond floats": ("llama-2", {"rms_norm_eps": 10**400}, "positive number .* for rms_norm_eps"),
    "infinite epsilon": ("llama-2", {"rms_norm_eps": math.inf}, "rms_norm_eps, got inf"),
    "a width beyond 32 bits": ("llama-2", {"hidden_size": 2**31}, "at most 2147483647 for hidden_size"),
    "no kind": ("llama-2", {"rope_scaling": {"type": None, "factor": 2}}, "default takes no options, got factor"),
    "two kinds": ("llama-2", {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2}}, "and 'llama3'"),
    "kind as a list": ("llama-2", {"rope_scaling": {"rope_type": ["linear"], "factor": 2}}, r"got \['linear'\]"),
    **{
        f"linear factor {factor!r}": (
            "llama-2",
            {"rope_scaling": {"type": "linear", "factor": factor}},
            "number .* for factor",
        )
        for factor in (0, -1, "2", True, [2.0], *INFINITE)
    },
    **{
        f"{key} {value!r}": ("llama-3", {"rope_parameters": {**LLAMA3, key: value}}, f"for {key}, got")
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        for value in (0, "a", math.nan)
    },
    "no band": ("llama-3", {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "below high_freq_factor, got 4.0"),
    "an upside-down band": ("llama-3", {"rope_scaling": {**LLAMA3, "low_freq_factor": 5}}, "got 5 and 4.0"),
    "two original lengths": (
        "llama-3",
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
        "got 64 among the RoPE options and 32 beside them",
    ),
    "two spellings, another kind": (
        "llama-2",
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4}},
        "rope_parameters and rope_scaling that say the same",
    ),
    "two spellings, another theta": (
        "llama-2",
        {
            "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 7},
            "rope_scaling": {"type": "linear", "factor": 4},
        },
        "rope_parameters and rope_scaling that say the same",
    ),
    "first layer as text": ("qwen2", {**WINDOW, "max_window_layers": "a"}, "for max_window_layers, got 'a'"),
    "layers as a number": ("qwen2", {**WINDOW, "layer_types": 5}, "under layer_types, got 5"),
    "too few layers": ("qwen2", {**WINDOW, "layer_types": ["sliding_attention"]}, "expected 3 times"),
    "unknown layers": ("qwen2", {**WINDOW, "layer_types": ["magic"] * 3}, "under layer_types"),
    "a switch as text": ("qwen2", {**WINDOW, "use_sliding_window": "a"}, "true or false for use_sliding_window"),
    "a window that is off": (
        "qwen2",
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3},
        "expected a sliding_window for sliding_attention, it is off or null",
    ),
}
"""Model, what is changed, and what is said."""


@pytest.mark.parametrize(("model", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_by_name(model: str, change: dict[str, Any], message: str) -> None:
    plain = {key: value for key, value in CONFIGS[model].items() if key not in ("rope_parameters", "rope_scaling")}
    with pytest.raises(DataError, match=message) as error:
        ModelSpec.from_hf_config({**plain, **change})
    assert len(str(error.value)) < 400


READ: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "both spellings that agree": (
        "llama-2",
        {
            "rope_theta": 7,
            "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 7.0},
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        {"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 4}},
    ),
    "an empty new spelling": (
        "llama-2",
        {"rope_parameters": {}, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}},
    ),
    "the old name of the kind in the new spelling": (
        "llama-2",
        {"rope_parameters": {"type": "linear", "factor": 4}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4}},
    ),
    "a window from layer 28 on": (
        "qwen2",
        {"num_hidden_layers": 28, **WINDOW, "max_window_layers": 28},
        {"sliding_window": None},
    ),
    "a window that layers name": (
        "qwen2",
        {**WINDOW, "max_window_layers": 2, "layer_types": ["sliding_attention"] * 3},
        {"sliding_window": 8},
    ),
}
"""Model, what is changed, and what is read."""


@pytest.mark.parametrize(("model", "change", "expected"), READ.values(), ids=READ)
def test_is_read(model: str, change: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {**CONFIGS[model], **change}
    spec = ModelSpec.from_hf_config(config)
    assert {key: getattr(spec, key) for key in expected} == expected
    written = with_both_spellings(config, "float32")
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert ModelSpec.from_hf_config(written) == ModelSpec.from_hf_config(old) == spec


def test_a_window_whose_first_layer_is_not_said_begins_at_28() -> None:
    """As in transformers: with 30 layers a mixture, with 28 no window."""
    config = {key: value for key, value in {**CONFIGS["qwen2"], **WINDOW}.items() if key != "max_window_layers"}
    assert ModelSpec.from_hf_config({**config, "num_hidden_layers": 28}).sliding_window is None
    with pytest.raises(DataError, match="on all layers or on none"):
        ModelSpec.from_hf_config({**config, "num_hidden_layers": 30})


#: Every name that the reader looks up, taken from its text so that a new one cannot be forgotten here.
FIELDS = sorted(
    {
        *re.findall(r'(?:get|_whole|_number|_flag|_options)\((?:\w+, )?"(\w+)"', inspect.getsource(hf_config)),
        "rope_parameters",
        "rope_scaling",
        *LLAMA3,
        "type",
        *(key for family in FAMILIES.values() for key in (*family.defaults, *family.only)),
    }
)


def configs_with(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """Every model with a value in a field, at the top and among the RoPE options of either spelling."""
    for config in (*CONFIGS.values(), {**CONFIGS["qwen2"], **WINDOW}):
        yield {**config, key: value}
        plain = {name: kept for name, kept in config.items() if name not in ("rope_parameters", "rope_scaling")}
        for spelling in ("rope_parameters", "rope_scaling"):
            for options in (LLAMA3, {"type": "linear", "factor": 4.0}, {"rope_type": "default"}):
                yield {**plain, spelling: {**options, key: value}}


@pytest.mark.parametrize("key", FIELDS)
def test_any_value_is_refused_or_read(key: str) -> None:
    """What is accepted has dimensions that can be trained, and reads the same once it is exported."""
    for config in (config for value in VALUES for config in configs_with(key, value)):
        try:
            spec = ModelSpec.from_hf_config(config)
        except DataError as error:
            assert len(str(error)) < 500
            continue
        assert 0 < spec.rope_theta < 3.5e38, config
        assert 0 < spec.norm_eps < 3.5e38, config
        for option, number in (spec.rope_scaling or {}).items():
            assert option == "rope_type" or (type(number) in (int, float) and 0 < number < 3.5e38), config
        assert spec.num_parameters < 2**100, config
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False))) == spec
        assert ModelSpec.from_hf_config(with_both_spellings(config, "bfloat16")) == spec, config


def test_the_fields_are_found() -> None:
    assert {"model_type", "architectures", "rms_norm_eps", "layer_types", "num_experts", "rope_theta"} <= {*FIELDS}
