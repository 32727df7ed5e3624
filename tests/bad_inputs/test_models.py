"""Models and tokenizers that do not fit, through download, convert and check: the tensor or file, expected, got."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.bad_inputs.recipe_fields import MICRO
from tests.bad_inputs.refusals import command, download, stage
from tests.tiny_models import CONFIGS, hub_arrays, tensor_file_bytes, tokenizer_directory

CONFIG = CONFIGS["llama-2"]
Folder = dict[str, bytes]


def model(**arrays: Any) -> Folder:
    """A Hub directory; arrays are put beside or over the good ones, None takes one away."""
    tensors = {**hub_arrays(CONFIG), **{name.replace("__", "."): array for name, array in arrays.items()}}
    kept = {name: array for name, array in tensors.items() if array is not None}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": tensor_file_bytes(kept),
    }


def weights(change: Callable[[bytes], bytes]) -> Folder:
    """A Hub directory whose weights file is changed as bytes."""
    files = model()
    return {**files, "model.safetensors": change(files["model.safetensors"])}


def without(*names: str) -> Folder:
    return {name: data for name, data in model().items() if name not in names}


def header(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(8, "little") + data


NORM = "model__norm__weight"
SHAPES: dict[str, tuple[Folder, tuple[str, ...]]] = {
    "cut": (weights(lambda data: data[:-1000]), ("model.safetensors",)),
    "cut in the header": (weights(lambda data: data[:100]), ("model.safetensors",)),
    "empty": (weights(lambda data: b""), ("model.safetensors",)),
    "longer": (weights(lambda data: data + b"\0" * 8), ("model.safetensors",)),
    "a huge header": (weights(lambda data: (2**62).to_bytes(8, "little") + data[8:]), ("model.safetensors",)),
    "no JSON": (weights(lambda data: header("{")), ("model.safetensors",)),
    "a list": (weights(lambda data: header("[]")), ("model.safetensors",)),
    "offsets outside": (
        weights(lambda data: header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}')),
        ("model.safetensors",),
    ),
    "negative shape": (
        weights(lambda data: header('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 0]}}')),
        ("model.safetensors",),
    ),
    "overlapping": (
        weights(
            lambda data: (
                header(
                    '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
                    ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
                )
                + b"\0" * 4
            )
        ),
        ("model.safetensors",),
    ),
    "unknown type": (
        weights(lambda data: header('{"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}') + b"\0" * 4),
        ("Q4",),
    ),
    "a list as type": (
        weights(lambda data: header('{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}') + b"\0" * 4),
        ("expected a dtype of", "got ['F32']"),
    ),
    "an index that names a missing file": (
        {
            **model(),
            "model.safetensors.index.json": json.dumps({"weight_map": {"lm_head.weight": "b.safetensors"}}).encode(),
        },
        ("model.safetensors.index.json names b.safetensors", "download it again"),
    ),
    "an index that names a missing tensor": (
        {
            **model(),
            "model.safetensors.index.json": json.dumps({"weight_map": {"extra": "model.safetensors"}}).encode(),
        },
        ("lists tensors that its files do not hold: extra",),
    ),
    "whole numbers": (model(**{NORM: np.zeros(32, np.int32)}), ("model.norm.weight (int32)", "not fp32, fp16 or bf16")),
    "wrong shape": (
        model(model__layers__1__mlp__up_proj__weight=np.zeros((48, 31), np.float32)),
        ("model.layers.1.mlp.up_proj.weight", "(48, 32)", "(48, 31)"),
    ),
    "wrong rank": (model(**{NORM: np.zeros((32, 1), np.float32)}), ("model.norm.weight", "(32,)", "(32, 1)")),
    "missing": (model(**{NORM: None}), ("model.norm.weight",)),
    "missing head": (model(lm_head__weight=None), ("lm_head.weight",)),
    "unknown": (
        model(model__layers__0__mlp__extra__weight=np.zeros((2, 2), np.float32)),
        ("model.layers.0.mlp.extra.weight",),
    ),
    "a layer too many": (
        model(model__layers__9__input_layernorm__weight=np.zeros(32, np.float32)),
        ("model.layers.9.input_layernorm.weight",),
    ),
    "NaN": (model(**{NORM: np.full(32, np.nan, np.float32)}), ("model.norm.weight", "allow_non_finite")),
    "infinite": (model(**{NORM: np.full(32, np.inf, np.float32)}), ("model.norm.weight", "allow_non_finite")),
}
"""Refused by convert."""

CONFIGURATIONS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no JSON": (b"{", ("config.json",)),
    "empty": (b"", ("config.json",)),
    "a list": (b"[]", ("config.json",)),
    "not UTF-8": (b"\xff\xfe", ("config.json",)),
    "empty object": (b"{}", ("model_type",)),
    **{
        name: (json.dumps({**CONFIG, **change}).encode(), words)
        for name, change, words in (
            ("another family", {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ("gpt2",)),
            ("no layers", {"num_hidden_layers": 0}, ("num_hidden_layers",)),
            ("a billion layers", {"num_hidden_layers": 10**9}, ("num_layers", "at most 10000, got 1000000000")),
            ("layers as a text", {"num_hidden_layers": "three"}, ("num_hidden_layers", "three")),
            ("negative width", {"hidden_size": -32}, ("hidden_size",)),
            ("heads that do not divide", {"num_attention_heads": 5}, ("num_attention_heads",)),
            (
                "groups that do not divide",
                {"num_key_value_heads": 3},
                ("expected key/value heads that divide the query heads, got 3 and 4",),
            ),
            ("another activation", {"hidden_act": "gelu"}, ("gelu",)),
            ("unknown RoPE", {"rope_scaling": {"type": "magic", "factor": 2.0}}, ("magic",)),
            ("RoPE without a factor", {"rope_scaling": {"type": "linear"}}, ("factor",)),
            ("RoPE scaling as a text", {"rope_scaling": "linear"}, ("expected an object or null for rope_scaling",)),
            ("a RoPE factor of 0", {"rope_scaling": {"type": "linear", "factor": 0}}, ("for factor, got 0",)),
            (
                "a factor without a kind",
                {"rope_scaling": {"type": None, "factor": 2}},
                ("takes no options, got factor",),
            ),
            (
                "two spellings of RoPE that differ",
                {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4}},
                ("rope_parameters and rope_scaling that say the same",),
            ),
            ("theta beyond floats", {"rope_theta": 10**400}, ("rope_theta",)),
            ("infinite epsilon", {"rms_norm_eps": float("inf")}, ("rms_norm_eps, got inf",)),
            ("width beyond floats", {"hidden_size": 10**400}, ("hidden_size",)),
            ("a list of families", {"model_type": ["mistral"]}, ("got ['mistral']",)),
            ("classes as a number", {"architectures": 5}, ("architectures, got 5",)),
            ("biases", {"attention_bias": True}, ("attention_bias",)),
            ("quantized", {"quantization_config": {"quant_method": "gptq"}}, ("quantization_config",)),
        )
    },
}
"""Refused by ``stagecoach check``, and so by plan, before anything is read but this file."""

TOKENIZERS: dict[str, tuple[Folder, int, tuple[str, ...]]] = {
    "no JSON": ({"tokenizer.json": b"{"}, 79, ("tokenizer.json",)),
    "empty": ({"tokenizer.json": b""}, 79, ("tokenizer.json",)),
    "another JSON": ({"tokenizer.json": b'{"a": 1}'}, 79, ("tokenizer.json",)),
    "a negative id": (
        {
            **tokenizer_directory(),
            "tokenizer.json": tokenizer_directory()["tokenizer.json"].replace(b'"id":320', b'"id":-3'),
        },
        79,
        ("tokenizer.json: expected a whole number from 0 on as id of '<|im_start|>', got -3",),
    ),
    "one id twice": (
        {
            **tokenizer_directory(),
            "tokenizer.json": tokenizer_directory()["tokenizer.json"].replace(b'"id":321', b'"id":320'),
        },
        79,
        ("tokenizer.json: expected an id of its own for every token, got 320",),
    ),
    "no protobuf": ({"tokenizer.model": b"hello"}, 79, ("tokenizer.model",)),
    "empty model": ({"tokenizer.model": b""}, 79, ("tokenizer.model",)),
    "deep configuration": (
        {**tokenizer_directory(), "tokenizer_config.json": b"[" * 100_000},
        79,
        ("tokenizer_config.json", "expected JSON"),
    ),
    "bad configuration": ({**tokenizer_directory(), "tokenizer_config.json": b"["}, 79, ("tokenizer_config.json",)),
}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECOACH_SCRATCH", str(tmp_path / "scratch"))


def write(folder: Path, files: Folder) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("case", SHAPES)
def test_weights(case: str, tmp_path: Path) -> None:
    files, words = SHAPES[case]
    convert(tmp_path, files)[1].assert_refused(79, *words)


def test_a_pickle_that_would_run_a_command(tmp_path: Path) -> None:
    """A ``.bin`` file as torch writes it, but for what it asks the reader to call."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model.norm.weight": Touch(tmp_path / "owned")}))
    files = {**without("model.safetensors"), "pytorch_model.bin": stream.getvalue()}
    convert(tmp_path, files)[1].assert_refused(79, "pytorch_model.bin", "posix.system")
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Touch(tmp_path / "owned")))  # what trusts it runs it
    assert (tmp_path / "owned").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"tensor_parallel": 8}, ("tensor_parallel", "1, 2, 4")),
        ({"pipeline_parallel": 7}, ("pipeline",)),
    ],
    ids=["tensor parallel", "pipeline parallel"],
)
def test_a_layout_that_does_not_fit_the_model(layout: dict[str, int], words: tuple[str, ...], tmp_path: Path) -> None:
    _, done = convert(tmp_path, model())
    assert done.exit_code == 0, done.said
    (native,) = (tmp_path / "store/native").iterdir()
    (tmp_path / "shard.json").touch()
    values = {"task": "shard", "name": "x", "inputs": {"native": f"native/{native.name}/"}, "config": layout}
    stage(tmp_path, tmp_path / "store", "shard", values).assert_refused(78, *words)


def convert(tmp_path: Path, files: Folder) -> tuple[dict[str, str], Any]:
    """Bring model and tokenizer into the store and run convert; its inputs, and what it did."""
    store = tmp_path / "store"
    inputs = {
        "model": download(tmp_path, store, "download-model", write(tmp_path / "m", files)),
        "tokenizer": download(
            tmp_path, store, "download-tokenizer", write(tmp_path / "t", tokenizer_directory()), chat_format="chatml"
        ),
    }
    (tmp_path / "convert.json").touch()
    return inputs, stage(tmp_path, store, "convert", {"task": "convert", "name": "x", "inputs": inputs, "config": {}})


def check_model(tmp_path: Path, files: Folder) -> Any:
    recipe = yaml.safe_load(MICRO.read_text(encoding="utf-8"))
    recipe["model"] = {"name": "m", "source": {"kind": "directory", "path": str(write(tmp_path / "m", files))}}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return command(tmp_path, "check", str(file), "--work", str(tmp_path / "work"))


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration(case: str, tmp_path: Path) -> None:
    content, words = CONFIGURATIONS[case]
    done = check_model(tmp_path, {**model(), **tokenizer_directory(), "config.json": content})
    done.assert_refused(79, *words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (without("config.json"), "expected a config.json beside the weights"),
        (without("model.safetensors"), "expected weights"),
        ({**without("model.safetensors"), "model-00001-of-00002.safetensors": b""}, "model-00002-of-00002.safetensors"),
        ({**without("model.safetensors"), "adapter_model.safetensors": b""}, "expected weights"),
        ({}, "found nothing"),
    ],
    ids=["no config", "no weights", "a part is missing", "an adapter", "nothing"],
)
def test_files_that_are_not_there(files: Folder, words: str, tmp_path: Path) -> None:
    check_model(tmp_path, files).assert_refused(66, words)


def test_two_iterations_of_the_original_system(tmp_path: Path) -> None:
    ranks = {f"iter_{at:07d}/mp_rank_00/model_rng.pt": b"" for at in (144, 152)}
    found = check_model(
        tmp_path, {**without("model.safetensors"), **ranks, "latest_checkpointed_iteration.txt": b"152"}
    )
    found.assert_refused(79, "got iter_0000144, iter_0000152; name the files of one under files, such as")


def test_no_tokenizer(tmp_path: Path) -> None:
    check_model(tmp_path, model()).assert_refused(66, "expected a tokenizer.json or tokenizer.model")


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer(case: str, tmp_path: Path) -> None:
    files, exit_code, words = TOKENIZERS[case]
    folder = write(tmp_path / "t", files)
    found = [
        {"path": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    config = {"source": {"kind": "directory", "path": str(folder)}, "files": found, "chat_format": "chatml"}
    (tmp_path / "download.json").touch()
    values = {"task": "download-tokenizer", "name": "x", "config": config}
    done = stage(tmp_path, tmp_path / "store", "download", values)
    done.assert_refused(exit_code, *words)
    assert "scratch" not in done.said.splitlines()[-1]


def test_a_file_that_changed_after_the_plan(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", model())
    files = [{"path": "config.json", "size_bytes": 5, "sha256": "0" * 64}]
    config = {"source": {"kind": "directory", "path": str(folder)}, "files": files}
    (tmp_path / "download.json").touch()
    values = {"task": "download-model", "name": "x", "config": config}
    stage(tmp_path, tmp_path / "store", "download", values).assert_refused(79, "config.json")


@pytest.mark.parametrize("path", ["../m/config.json", "/etc/passwd", "a/../../x", "a//b", "a\\b", "a\nb", ""])
def test_a_path_that_leaves_the_source(path: str, tmp_path: Path) -> None:
    """Plans and manifests come from a store that others can write to."""
    files = [{"path": path, "size_bytes": 5, "sha256": "0" * 64}]
    config = {"source": {"kind": "directory", "path": str(tmp_path)}, "files": files}
    (tmp_path / "download.json").touch()
    values = {"task": "download-model", "name": "x", "config": config}
    stage(tmp_path, tmp_path / "store", "download", values).assert_refused(78, "expected a relative path")
