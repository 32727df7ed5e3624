"""model.json of native weights, and how tensors are spread over files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stagecoach.architectures.registry import native_tensors
from stagecoach.errors import CorruptObjectError, DataError
from stagecoach.formats.native import NativeModel, NativeReader, split_into_files
from tests.tiny_models import spec_of, tensor_file_bytes

SPEC = spec_of("llama-tied", num_hidden_layers=1)
MODEL = NativeModel(
    spec=SPEC,
    dtype="BF16",
    files={tensor.name: "model.safetensors" for tensor in native_tensors(SPEC)},
    base_config={"model_type": "llama"},
    source_vocab_size=318,
    new_tokens={"<|im_start|>": 318, "<|im_end|>": 319},
)


def test_literal_json() -> None:
    content = json.loads(MODEL.to_bytes())
    assert content["format"] == "stagecoach-native"
    assert content["version"] == 1
    assert content["new_tokens"] == {"<|im_start|>": 318, "<|im_end|>": 319}
    assert content["spec"]["vocab_size"] == 320
    assert content["files"]["final_norm.weight"] == "model.safetensors"


def test_there_and_back() -> None:
    assert NativeModel.from_bytes(MODEL.to_bytes()) == MODEL


@pytest.mark.parametrize(
    ("name", "value"), [("version", 2), ("format", "x"), ("spec", {}), ("unknown", 1), ("files", None)]
)
def test_another_form_is_refused(name: str, value: object) -> None:
    content = json.loads(MODEL.to_bytes()) | {name: value}
    with pytest.raises((CorruptObjectError, DataError), match=r"model.json|model dimensions"):
        NativeModel.from_bytes(json.dumps(content).encode())


def test_a_tensor_without_a_file_is_named() -> None:
    content = json.loads(MODEL.to_bytes())
    del content["files"]["final_norm.weight"]
    with pytest.raises(DataError, match=r"these differ: \['final_norm.weight'\]"):
        NativeModel.from_bytes(json.dumps(content).encode())


def test_a_file_that_contradicts_the_dimensions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensor_file_bytes({"final_norm.weight": np.ones(31, np.float32)}))
    with pytest.raises(DataError, match=r"final_norm.weight: expected shape \(32,\), got \(31,\)"):
        NativeReader(MODEL, lambda name: tmp_path / name).rectangle("final_norm.weight")


class TestSplitIntoFiles:
    def test_one_file_has_no_number(self) -> None:
        assert split_into_files({"a": 6, "b": 4}, 10) == {"a": "model.safetensors", "b": "model.safetensors"}

    def test_a_file_is_filled_up_to_the_limit(self) -> None:
        numbers = [name[6:11] for name in split_into_files({"a": 6, "b": 4, "c": 1, "d": 10}, 10).values()]
        assert numbers == ["00001", "00001", "00002", "00003"]

    def test_a_tensor_above_the_limit_gets_a_file_of_its_own(self) -> None:
        assert set(split_into_files({"a": 25, "b": 1}, 10).values()) == {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        }
