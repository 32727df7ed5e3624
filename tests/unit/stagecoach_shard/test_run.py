"""The shard stage: every layout's files hold the native rectangles, and merge to the native model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.architectures.registry import native_tensors
from stagecoach.errors import ConfigError
from stagecoach.formats.shards import Shards
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.outputs import Input
from stagecoach.storage.memory import MemoryStore
from tests.tiny_models import CONFIGS, Pipeline, hub_directory, native_arrays, tokenizer_directory


def _native(tmp_path: Path, family: str, dtype: str = "F32", **changes: Any) -> tuple[Pipeline, Input]:
    pipeline = Pipeline(MemoryStore(), tmp_path)
    model = pipeline.finish("sources/models/m-1/", hub_directory({**CONFIGS[family], **changes}, dtype))
    return pipeline, pipeline.convert(model, pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory()))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (2, 2, 1), (2, 2, 2)])
def test_merging_gives_the_native_model(tmp_path: Path, family: str, layout: tuple[int, int, int]) -> None:
    """Five layers: no pipeline of these divides them, interleaved or not."""
    pipeline, native = _native(tmp_path, family, num_hidden_layers=5)
    shards = pipeline.shard(native, *layout)
    reader = Shards.from_bytes(shards.read_bytes("shards.json")).reader(shards.path)
    for name, array in native_arrays(native).items():
        assert np.array_equal(reader.read(name), array), name


def test_the_files_of_a_layout(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "mistral")
    assert pipeline.shard(native, 2, 2).names() == [
        "shards.json",
        "tp2-pp2/rank-tp00-pp00.safetensors",
        "tp2-pp2/rank-tp00-pp01.safetensors",
        "tp2-pp2/rank-tp01-pp00.safetensors",
        "tp2-pp2/rank-tp01-pp01.safetensors",
    ]


def test_padding_rows_are_zero(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "mistral")
    shards = pipeline.shard(native, 2, 1)
    file = TensorFile.open(shards.path("tp2-pp1/rank-tp01-pp00.safetensors"))
    # 322 tokens pad to 512, so this rank holds rows 256 to 511, of which 66 are real
    assert file.shape("head.weight") == (256, 32)
    assert np.array_equal(file.rows("head.weight", 0, 66), native_arrays(native)["head.weight"][256:])
    assert not file.rows("head.weight", 66, 256).any()


def test_the_native_dtype_is_kept(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "mistral", "BF16")
    shards = pipeline.shard(native, 2, 1)
    file = TensorFile.open(shards.path("tp2-pp1/rank-tp00-pp00.safetensors"))
    assert {str(file.dtype(name)) for name in file.names()} == {"bfloat16"}
    assert shards.summary["padded_vocab_size"] == 512


def test_interleaved_stages_keep_global_layer_numbers(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "mistral", num_hidden_layers=4)
    shards = pipeline.shard(native, 1, 2, 2)
    held = [
        {name.split(".")[1] for name in TensorFile.open(shards.path(file)).names() if name.startswith("layers.")}
        for file in ("tp1-pp2-vp2/rank-tp00-pp00.safetensors", "tp1-pp2-vp2/rank-tp00-pp01.safetensors")
    ]
    assert held == [{"0", "2"}, {"1", "3"}]


def test_an_illegal_layout_names_the_legal_ones(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "mistral")
    with pytest.raises(ConfigError, match="expected one of 1, 2 "):
        pipeline.shard(native, 4, 1)
    assert list(pipeline.store.list("shards/")) == []


def test_every_tensor_of_the_spec_is_somewhere(tmp_path: Path) -> None:
    pipeline, native = _native(tmp_path, "qwen3")
    shards = pipeline.shard(native, 2, 3)
    spec = Shards.from_bytes(shards.read_bytes("shards.json")).spec
    found = {name for file in shards.names()[1:] for name in TensorFile.open(shards.path(file)).names()}
    assert found == {tensor.name for tensor in native_tensors(spec)}
