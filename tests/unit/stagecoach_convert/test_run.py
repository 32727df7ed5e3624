"""The convert stage: what comes out, new rows, and every input that does not fit."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import DataError, StoreUnavailable
from stagecoach.formats.native import NativeModel
from stagecoach.formats.tensor_file import BFLOAT16, Array
from stagecoach.outputs import Input
from stagecoach.parallel.slicing import RankLayout
from stagecoach.storage.base import Write
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from tests.tiny_models import (
    CONFIGS,
    Pipeline,
    hub_arrays,
    hub_directory,
    native_arrays,
    tensor_file_bytes,
    tokenizer_directory,
)

MISTRAL = CONFIGS["mistral"]
TIED = CONFIGS["llama-tied"]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(MemoryStore(), tmp_path)


def _convert(
    pipeline: Pipeline, files: dict[str, bytes], tokenizer: dict[str, bytes] | None = None, **config: Any
) -> Input:
    model = pipeline.finish("sources/models/m-1/", files)
    final = pipeline.finish("sources/tokenizers/m-1/", tokenizer or tokenizer_directory())
    return pipeline.convert(model, final, **config)


def _changed(config: dict[str, Any], change: Callable[[dict[str, Array]], None]) -> dict[str, bytes]:
    arrays = hub_arrays(config)
    change(arrays)
    return {"config.json": json.dumps(config).encode(), "model.safetensors": tensor_file_bytes(arrays)}


class TestNumbers:
    def test_qkv_rows_by_group(self, pipeline: Pipeline) -> None:
        qkv = native_arrays(_convert(pipeline, hub_directory(MISTRAL)))["layers.1.attention.qkv.weight"]
        hub = hub_arrays(MISTRAL)
        q, k, v = (hub[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
        assert np.array_equal(qkv, np.concatenate([q[:16], k[:8], v[:8], q[16:], k[8:], v[8:]]))

    def test_several_files_give_the_same_as_one(self, pipeline: Pipeline) -> None:
        one = _convert(pipeline, hub_directory(MISTRAL)).read_bytes("model.safetensors")
        pipeline.store = MemoryStore()
        assert _convert(pipeline, hub_directory(MISTRAL, num_files=4)).read_bytes("model.safetensors") == one

    @pytest.mark.parametrize(
        ("source", "wanted", "stored"),
        [("BF16", "source", "BF16"), ("F16", "source", "F32"), ("F32", "source", "F32"), ("F32", "bf16", "BF16")],
    )
    def test_storage_dtype(self, pipeline: Pipeline, source: str, wanted: str, stored: str) -> None:
        native = _convert(pipeline, hub_directory(MISTRAL, source), dtype=wanted)
        model = NativeModel.from_bytes(native.read_bytes("model.json"))
        norm = native_arrays(native)["final_norm.weight"]
        expected = hub_arrays(MISTRAL, source)["model.norm.weight"]
        assert model.dtype == native.summary["dtype"] == stored
        if stored == "BF16":
            assert np.array_equal(norm, expected.astype(BFLOAT16))
        else:
            assert np.array_equal(norm, expected.astype(np.float32))

    def test_the_same_bytes_twice(self, pipeline: Pipeline) -> None:
        first = {
            name: entry.sha256 for name, entry in _convert(pipeline, hub_directory(MISTRAL)).manifest.objects.items()
        }
        pipeline.store = MemoryStore()
        assert first == {
            name: entry.sha256 for name, entry in _convert(pipeline, hub_directory(MISTRAL)).manifest.objects.items()
        }


class TestVocabulary:
    def test_new_rows_lie_near_the_mean_and_differ(self, pipeline: Pipeline) -> None:
        native = _convert(pipeline, hub_directory(MISTRAL))
        old = hub_arrays(MISTRAL)["model.embed_tokens.weight"]
        embedding = native_arrays(native)["embedding.weight"]
        assert embedding.shape == (322, 32)
        assert np.array_equal(embedding[:320], old)
        new = embedding[320:] - old.mean(axis=0)
        assert not np.array_equal(new[0], new[1])
        # 64 numbers with a tenth of the spread 0.2
        assert 0.014 < float(np.sqrt((new**2).mean())) < 0.026
        assert native.summary["new_tokens"] == {"<|im_start|>": 320, "<|im_end|>": 321}

    def test_head_and_embedding_have_noise_of_their_own(self, pipeline: Pipeline) -> None:
        arrays = native_arrays(_convert(pipeline, hub_directory(MISTRAL)))
        hub = hub_arrays(MISTRAL)
        noise = [
            arrays[native][320:] - hub[name].astype(np.float64).mean(axis=0)
            for native, name in (("embedding.weight", "model.embed_tokens.weight"), ("head.weight", "lm_head.weight"))
        ]
        assert not np.allclose(noise[0], noise[1], atol=1e-3)

    def test_without_noise_the_rows_are_the_mean(self, pipeline: Pipeline) -> None:
        embedding = native_arrays(_convert(pipeline, hub_directory(MISTRAL), new_row_noise=0.0))["embedding.weight"]
        old = hub_arrays(MISTRAL)["model.embed_tokens.weight"].astype(np.float64)
        assert np.array_equal(embedding[320], old.mean(axis=0).astype(np.float32))
        assert np.array_equal(embedding[320], embedding[321])

    def test_another_seed_gives_other_noise(self, pipeline: Pipeline) -> None:
        one = native_arrays(_convert(pipeline, hub_directory(MISTRAL), seed=1))["embedding.weight"][320:]
        pipeline.store = MemoryStore()
        assert not np.array_equal(
            one, native_arrays(_convert(pipeline, hub_directory(MISTRAL), seed=2))["embedding.weight"][320:]
        )

    def test_an_embedding_larger_than_the_tokenizer_is_kept(self, pipeline: Pipeline) -> None:
        native = _convert(pipeline, hub_directory(MISTRAL), tokenizer_directory(300, chatml_at=(3, 4)))
        assert native_arrays(native)["embedding.weight"].shape == (320, 32)
        assert native.summary["new_tokens"] == {}

    def test_a_tied_model_grows_once(self, pipeline: Pipeline) -> None:
        arrays = native_arrays(_convert(pipeline, hub_directory(TIED)))
        assert arrays["embedding.weight"].shape == (322, 32)
        assert "head.weight" not in arrays

    def test_a_tokenizer_larger_than_the_embedding_is_refused(self, pipeline: Pipeline) -> None:
        with pytest.raises(DataError, match=r"'w320' has id 320, but the embedding has 320 rows \(5 such tokens\)"):
            _convert(pipeline, hub_directory(MISTRAL), tokenizer_directory(325))

    def test_a_gap_before_the_new_tokens_is_refused(self, pipeline: Pipeline) -> None:
        tokenizer = tokenizer_directory()
        gap = json.loads(tokenizer["tokenizer.json"])
        for token in gap["added_tokens"]:
            token["id"] += 2 if token["id"] >= 320 else 0
        with pytest.raises(DataError, match=r"without a gap, got {'<|im_start|>': 322"):
            _convert(pipeline, hub_directory(MISTRAL), {**tokenizer, "tokenizer.json": json.dumps(gap).encode()})


class TestAccounting:
    def test_derived_tensors_are_dropped_knowingly(self, pipeline: Pipeline) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        native = _convert(pipeline, _changed(MISTRAL, lambda arrays: arrays.update({name: np.ones(4, np.float32)})))
        assert NativeModel.from_bytes(native.read_bytes("model.json")).dropped == (name,)

    def test_an_unknown_tensor_is_named(self, pipeline: Pipeline) -> None:
        files = _changed(MISTRAL, lambda arrays: arrays.update({"model.extra": np.ones(4, np.float32)}))
        with pytest.raises(DataError, match=r"contradict each other: 1 unknown: model\.extra$"):
            _convert(pipeline, files)

    def test_a_missing_tensor_is_named(self, pipeline: Pipeline) -> None:
        with pytest.raises(DataError, match=r"1 missing: model\.norm\.weight"):
            _convert(pipeline, _changed(MISTRAL, lambda arrays: arrays.__delitem__("model.norm.weight")))

    def test_a_wrong_shape_is_named(self, pipeline: Pipeline) -> None:
        files = _changed(MISTRAL, lambda arrays: arrays.update({"model.norm.weight": np.ones(31, np.float32)}))
        with pytest.raises(
            DataError, match=r"1 of another shape: model\.norm\.weight \(expected \(32,\), got \(31,\)\)"
        ):
            _convert(pipeline, files)

    def test_a_wrong_dtype_is_named(self, pipeline: Pipeline) -> None:
        files = _changed(MISTRAL, lambda arrays: arrays.update({"model.norm.weight": np.ones(32, np.int8)}))
        with pytest.raises(DataError, match=r"not fp32, fp16 or bf16: model\.norm\.weight \(int8\)"):
            _convert(pipeline, files)

    def test_a_config_that_contradicts_the_tensors(self, pipeline: Pipeline) -> None:
        files = {**hub_directory(MISTRAL), "config.json": json.dumps({**MISTRAL, "vocab_size": 321}).encode()}
        with pytest.raises(DataError, match=r"model\.embed_tokens\.weight \(expected \(321, 32\), got \(320, 32\)\)"):
            _convert(pipeline, files)

    def test_a_head_that_equals_a_tied_embedding_is_dropped(self, pipeline: Pipeline) -> None:
        files = _changed(TIED, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"]}))
        assert _convert(pipeline, files).summary["dropped_tensors"] == 1

    def test_a_head_that_differs_from_a_tied_embedding_is_refused(self, pipeline: Pipeline) -> None:
        files = _changed(
            TIED, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"] + 1})
        )
        with pytest.raises(DataError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
            _convert(pipeline, files)


class TestBadInput:
    def test_nothing_is_committed(self, pipeline: Pipeline) -> None:
        files = _changed(MISTRAL, lambda arrays: arrays.update({"model.extra": np.ones(4, np.float32)}))
        with pytest.raises(DataError):
            _convert(pipeline, files)
        assert list(pipeline.store.list("native/")) == []

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_non_finite_weight_is_named(self, pipeline: Pipeline, value: float) -> None:
        def spoil(arrays: dict[str, Array]) -> None:
            arrays["model.layers.2.mlp.up_proj.weight"][47, 31] = value

        with pytest.raises(DataError, match=r"layers\.2\.mlp\.up_proj\.weight: expected finite .* at \[47, 31\]"):
            _convert(pipeline, _changed(MISTRAL, spoil))

    def test_a_non_finite_weight_can_be_allowed(self, pipeline: Pipeline) -> None:
        def spoil(arrays: dict[str, Array]) -> None:
            arrays["model.norm.weight"][3] = np.nan

        native = _convert(pipeline, _changed(MISTRAL, spoil), allow_non_finite=True)
        assert np.isnan(native_arrays(native)["final_norm.weight"]).tolist().index(True) == 3

    def test_a_weight_too_large_for_bf16_is_named(self, pipeline: Pipeline) -> None:
        def spoil(arrays: dict[str, Array]) -> None:
            arrays["model.norm.weight"][3] = 3.4e38

        with pytest.raises(DataError, match="does not fit bfloat16"):
            _convert(pipeline, _changed(MISTRAL, spoil), dtype="bf16")

    def test_truncated_weights(self, pipeline: Pipeline) -> None:
        files = hub_directory(MISTRAL)
        with pytest.raises(DataError, match="truncated"):
            _convert(pipeline, {**files, "model.safetensors": files["model.safetensors"][:-10]})

    def test_no_weights(self, pipeline: Pipeline) -> None:
        with pytest.raises(DataError, match=r"the model's directory holds config\.json"):
            _convert(pipeline, {"config.json": hub_directory(MISTRAL)["config.json"]})

    def test_a_broken_config(self, pipeline: Pipeline) -> None:
        with pytest.raises(DataError, match=r"sources/models/m-1/config\.json: not valid JSON"):
            _convert(pipeline, {**hub_directory(MISTRAL), "config.json": b"{"})


class _FullStore(MemoryStore):
    """A disk that has room for the inputs and some bytes more."""

    room_bytes: int | None = None

    @contextmanager
    def create(self, key: str) -> Iterator[Write]:
        with super().create(key) as write:

            def write_while_there_is_room(data: bytes | memoryview) -> None:
                if self.room_bytes is not None:
                    if len(data) > self.room_bytes:
                        write(data[: self.room_bytes])
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key)
                    self.room_bytes -= len(data)
                write(data)

            yield write_while_there_is_room


def calls_of(pipeline: Pipeline) -> dict[str, Callable[[], Input]]:
    """Make what the three stages read; returns stage -> a call of it."""
    model = pipeline.finish("sources/models/m-1/", hub_directory(MISTRAL))
    tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
    native = pipeline.convert(model, tokenizer)
    trained = pipeline.trained(native, RankLayout(2, 1))
    return {
        "convert": lambda: pipeline.convert(model, tokenizer, prefix="native/m-2/"),
        "shard": lambda: pipeline.shard(native, 2, 1),
        "export": lambda: pipeline.export(trained, native, tokenizer),
    }


@pytest.mark.parametrize("room_bytes", [1_000, 50_000])
@pytest.mark.parametrize("stage", ["convert", "shard", "export"])
def test_a_disk_that_fills_in_the_middle_leaves_nothing_that_counts(
    tmp_path: Path, stage: str, room_bytes: int
) -> None:
    """In the first file of weights, a little after its beginning and near its end."""
    store = _FullStore()
    pipeline = Pipeline(store, tmp_path)
    runs = calls_of(pipeline)
    before = {info.key for info in store.list("") if info.key.endswith("manifest.json")}
    store.room_bytes = room_bytes
    with pytest.raises(OSError, match="No space left"):
        runs[stage]()
    assert {info.key for info in store.list("") if info.key.endswith("manifest.json")} == before
    assert list((tmp_path / "out").iterdir()) == []
    store.room_bytes = None
    assert len(runs[stage]().names()) >= 2


@pytest.mark.parametrize("stage", ["convert", "shard", "export"])
def test_a_file_system_that_takes_no_more_leaves_no_file(tmp_path: Path, stage: str) -> None:
    """The same in a directory, where the system itself ends a write in the middle of the first file of weights."""
    pipeline = Pipeline(LocalStore(tmp_path / "store"), tmp_path)
    runs = calls_of(pipeline)
    before = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
    try:
        with pytest.raises(StoreUnavailable, match="no space left on its disk; free some") as caught:
            runs[stage]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert caught.value.exit_code == 69
    assert sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file()) == before
    assert len(runs[stage]().names()) >= 2


def test_pinned_bytes(pipeline: Pipeline) -> None:
    """Another digest is another format: count up the output version of convert in ``stages.TASKS`` with it."""
    native = _convert(pipeline, hub_directory(MISTRAL, "BF16"))
    shards = pipeline.shard(native, 2, 1)
    found = {
        "model.safetensors": native.entry("model.safetensors").sha256[:16],
        "model.json": native.entry("model.json").sha256[:16],
        "rank 0": shards.entry("tp2-pp1/rank-tp00-pp00.safetensors").sha256[:16],
        "rank 1": shards.entry("tp2-pp1/rank-tp01-pp00.safetensors").sha256[:16],
    }
    assert found == {
        "model.safetensors": "02ae7844feeca0d1",
        "model.json": "69b1322c15812d01",
        "rank 0": "0a5302eeda97424c",
        "rank 1": "6180688d5cff8d9e",
    }


class TestProvenance:
    CARD = b"---\ntags:\n- chat\nlicense: Apache-2.0\n---\n# Mistral\nlicense: mit\n"

    def test_the_licence_of_the_model_card(self, pipeline: Pipeline) -> None:
        native = _convert(pipeline, {**hub_directory(MISTRAL), "README.md": self.CARD})
        assert native.summary["license"] == "apache-2.0"

    def test_a_card_without_front_matter_says_nothing(self, pipeline: Pipeline) -> None:
        native = _convert(pipeline, {**hub_directory(MISTRAL), "README.md": b"license: mit\n"})
        assert "license" not in native.summary

    def test_repository_and_commit(self, pipeline: Pipeline) -> None:
        summary = {"origin": "hub", "repo": "a/b", "commit": "c0ffee", "num_files": 2}
        model = pipeline.finish("sources/models/m-1/", hub_directory(MISTRAL), summary=summary)
        tokenizer = pipeline.finish("sources/tokenizers/m-1/", tokenizer_directory())
        native = pipeline.convert(model, tokenizer)
        assert native.summary["source"] == {"origin": "hub", "repo": "a/b", "commit": "c0ffee"}
