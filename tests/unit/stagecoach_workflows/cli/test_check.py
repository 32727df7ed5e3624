"""``stagecoach check`` and ``plan`` find errors and say what would run, without writing anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stagecoach_workflows.cli.main import app
from tests.unit.stagecoach_workflows.recipes import recipe_values

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "architectures": ["LlamaForCausalLM"],
}


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return ["--work", str(tmp_path / "work"), *more]


def recipe_file(tmp_path: Path, model: Path) -> str:
    source = {"kind": "directory", "path": str(model)}
    model_values = {"name": "local", "source": source, "chat_format": "chatml", "num_parameters": 24_992}
    values = recipe_values(model=model_values)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def model_directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(b"not read by check")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_good_recipe_is_told_what_it_will_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["check", "micro", *arguments(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["sources", "model", "store", "workflow"]
    assert "8 of 8 tasks have something to do" in lines[2]
    assert not (tmp_path / "work/store").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.layout.tensor_parallel=3", "tensor_parallel: expected one of 1, 2"),
        ("train.layout.pipeline_parallel=3", "pipeline"),
        ("train.layout.tensor_parallel=two", "--set train.layout.tensor_parallel"),
    ],
)
def test_a_layout_that_does_not_fit_is_78(
    tmp_path: Path, setting: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app(["check", "micro", "--set", setting, *arguments(tmp_path)]) == 78
    assert sentence in capfd.readouterr().err


def test_a_model_in_a_directory_is_known_by_its_config_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path, model_directory(tmp_path))
    assert app(["check", file, *arguments(tmp_path)]) == 0
    assert "model: llama" in capfd.readouterr().out


def test_a_missing_model_file_is_66(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = model_directory(tmp_path)
    (folder / "model.safetensors").unlink()
    assert app(["check", recipe_file(tmp_path, folder), *arguments(tmp_path)]) == 66
    assert "expected weights" in capfd.readouterr().err


def test_two_independent_errors_are_both_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The layout does not fit, and the store's address is none."""
    assert app(["check", "micro", "--set", "train.layout.tensor_parallel=3", "--store", "ftp://x"]) == 78
    layout, store = capfd.readouterr().err.splitlines()
    assert layout.startswith("tensor_parallel: expected one of")
    assert store.startswith("store: expected a directory")


def test_plan_shows_decisions_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["plan", "micro", *arguments(tmp_path)]) == 0
    rows = [line.split()[:2] for line in capfd.readouterr().out.splitlines() if line[:1].isalpha()]
    assert rows[1:] == [
        [task, "run"]
        for task in (
            "download-model",
            "download-tokenizer",
            "download-data-demo",
            "convert",
            "shard",
            "pack",
            "train",
            "export",
        )
    ]
    assert not (tmp_path / "work/store").exists()
