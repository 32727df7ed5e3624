"""Hub directories: one file or several, and an index that does not fit its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.formats.hf_model import HubSafetensors, hub_weight_files, vocabulary
from stagecoach.formats.tensor_file import Array, TensorToWrite
from tests.tiny_models import CONFIGS, hub_arrays, hub_directory, tensor_file_bytes, tokenizer_directory

A = {"a": np.ones(2, np.float32)}
B = {"b": np.zeros((2, 2), np.float16)}


def _open(folder: Path, files: Mapping[str, bytes]) -> HubSafetensors:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return HubSafetensors(files, lambda name: folder / name, "the model")


def _index(weight_map: object) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


class TestReading:
    def test_several_files(self, tmp_path: Path) -> None:
        source = _open(tmp_path, hub_directory(CONFIGS["mistral"], num_files=3))
        arrays = hub_arrays(CONFIGS["mistral"])
        assert dict(source.shapes()) == {name: array.shape for name, array in arrays.items()}
        assert all(np.array_equal(source.tensor(name), array) for name, array in arrays.items())

    def test_files_that_the_index_does_not_name_are_left_alone(self, tmp_path: Path) -> None:
        index = {"model.safetensors.index.json": _index({"a": "x.safetensors"}), "x.safetensors": tensor_file_bytes(A)}
        source = _open(tmp_path, {**index, "consolidated.safetensors": b"not even safetensors"})
        assert list(source.shapes()) == ["a"]

    @pytest.mark.parametrize(
        ("weight_map", "message"),
        [
            ({"a": "x.safetensors", "b": "gone.safetensors"}, r"names gone.safetensors, which the directory does not"),
            ({"a": "x.safetensors", "b": "x.safetensors"}, "lists tensors that its files do not hold: b"),
            ({"a": "x.safetensors", "b": "y.safetensors", "c": "z.safetensors"}, "b: expected in one file"),
            ({"a": "../x.safetensors"}, r"got '../x.safetensors'"),
            ({"a": "x.bin"}, r"got 'x.bin'"),
            ({}, "expected tensor names under weight_map"),
            (None, "expected tensor names under weight_map"),
        ],
    )
    def test_an_index_that_does_not_fit_is_refused(self, tmp_path: Path, weight_map: object, message: str) -> None:
        files: dict[str, dict[str, Array]] = {
            "x.safetensors": A,
            "y.safetensors": B,
            "z.safetensors": {**B, "c": A["a"]},
        }
        data = {name: tensor_file_bytes(arrays) for name, arrays in files.items()}
        with pytest.raises(DataError, match=message):
            _open(tmp_path, {"model.safetensors.index.json": _index(weight_map), **data})


class TestVocabulary:
    def test_added_tokens_count(self) -> None:
        ids = vocabulary(tokenizer_directory()["tokenizer.json"])
        assert (ids["w3"], ids["<|im_start|>"], ids["<|im_end|>"], len(ids)) == (3, 320, 321, 322)

    def test_a_unigram_vocabulary_is_a_list(self) -> None:
        data = {"model": {"vocab": [["<unk>", 0.0], ["x", -1.5]]}, "added_tokens": [{"id": 2, "content": "y"}]}
        assert vocabulary(json.dumps(data).encode()) == {"<unk>": 0, "x": 1, "y": 2}

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"model":{"vocab":{}}}', b'{"model":{"vocab":7}}'])
    def test_other_files_are_refused(self, data: bytes) -> None:
        with pytest.raises(DataError, match=r"tokenizer.json"):
            vocabulary(data)

    @pytest.mark.parametrize(
        ("vocab", "added", "message"),
        [
            *(
                ({"a": 0, "b": at}, [], f"as id of 'b', got {shown}")
                for at, shown in ((-1, "-1"), (True, "True"), (1.7, "1.7"), ("1", "'1'"), (None, "None"), (2**31, "2"))
            ),
            ({"a": 0}, [{"content": "x", "id": -3}], "as id of 'x', got -3"),
            ({"a": 0}, [{"content": "x", "id": False}], "as id of 'x', got False"),
            ({"a": 0, "b": 1, "c": 1}, [], "got 1 for 'b' and 'c'"),
            ({"a": 0}, [{"content": "x", "id": 0}], "got 0 for 'a' and 'x'"),
            ({"a": 0}, [7], "model.vocab and added_tokens"),
        ],
    )
    def test_ids_that_no_tokenizer_has_are_refused(self, vocab: object, added: object, message: str) -> None:
        data = {"model": {"vocab": vocab}, "added_tokens": added}
        with pytest.raises(DataError, match=message):
            vocabulary(json.dumps(data).encode())


TENSORS = [TensorToWrite(name, np.dtype("f4"), (size,), lambda: np.zeros(1)) for name, size in (("a", 2), ("b", 3))]


class TestWriting:
    def test_one_file_has_no_index(self) -> None:
        files, index = hub_weight_files(TENSORS, 20)
        assert ([*files], index) == (["model.safetensors"], None)

    def test_several_files_have_one(self) -> None:
        files, index = hub_weight_files(TENSORS, 19)
        assert index is not None
        assert [tensor.name for tensor in files["model-00002-of-00002.safetensors"]] == ["b"]
        assert json.loads(index) == {
            "metadata": {"total_size": 20},
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        }
