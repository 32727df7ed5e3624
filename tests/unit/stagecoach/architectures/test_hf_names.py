"""Which Hub rows a native tensor is made of, and back."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach.architectures.hf_names import hub_tensors, source_rows
from stagecoach.architectures.registry import ModelSpec, native_tensors
from tests.tiny_models import CONFIGS, hub_arrays, spec_of


def _native(spec: ModelSpec, name: str) -> list[tuple[str, int, int]]:
    (tensor,) = (tensor for tensor in native_tensors(spec) if tensor.name == name)
    return [(run.tensor.split(".")[-2], run.start, run.end) for run in source_rows(spec, tensor)]


def test_qkv_goes_by_key_value_group() -> None:
    # 4 query heads and 2 key/value heads of 8: a group is 16 query rows, 8 key rows, 8 value rows
    assert _native(spec_of("mistral"), "layers.2.attention.qkv.weight") == [
        ("q_proj", 0, 16),
        ("k_proj", 0, 8),
        ("v_proj", 0, 8),
        ("q_proj", 16, 32),
        ("k_proj", 8, 16),
        ("v_proj", 8, 16),
    ]


def test_gate_comes_before_up() -> None:
    assert _native(spec_of("mistral"), "layers.0.mlp.gate_up.weight") == [("gate_proj", 0, 48), ("up_proj", 0, 48)]


def test_the_way_back_names_native_rows() -> None:
    (key,) = (tensor for tensor in hub_tensors(spec_of("mistral")) if tensor.name.endswith("1.self_attn.k_proj.weight"))
    assert (key.shape, key.native, key.native_rows) == ((16, 32), "layers.1.attention.qkv.weight", ((16, 24), (48, 56)))


@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back_is_the_same(family: str) -> None:
    spec = spec_of(family)
    hub = hub_arrays(CONFIGS[family])
    native = {
        tensor.name: np.concatenate([hub[run.tensor][run.start : run.end] for run in source_rows(spec, tensor)])
        for tensor in native_tensors(spec)
    }
    assert {name: array.shape for name, array in native.items()} == {t.name: t.shape for t in native_tensors(spec)}
    for tensor in hub_tensors(spec):
        back = np.concatenate([native[tensor.native][start:end] for start, end in tensor.native_rows])
        assert np.array_equal(back, hub[tensor.name])


@pytest.mark.parametrize("family", CONFIGS)
def test_the_names_and_shapes_are_those_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**CONFIGS[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in hub_tensors(spec_of(family))} == theirs
