"""Which files of a repository are taken, on listings as they really occur."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.errors import MissingInputError
from stagecoach.source_files import data_files, document_files, matching, model_files, tokenizer_files

MISTRAL = [
    ".gitattributes",
    "README.md",
    "LICENSE.txt",
    "config.json",
    "consolidated.safetensors",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "training_args.bin",
]


def test_safetensors_are_taken_and_all_other_weights_left() -> None:
    assert model_files(MISTRAL, "m") == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_bin_files_are_taken_where_there_is_no_safetensors() -> None:
    old = [path for path in MISTRAL if not path.endswith((".safetensors", ".safetensors.index.json"))]
    assert model_files(old, "m") == [
        "config.json",
        "generation_config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]


def test_one_whole_file_wins_over_parts() -> None:
    assert model_files([*MISTRAL, "model.safetensors"], "m") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_a_missing_part_is_named() -> None:
    with pytest.raises(MissingInputError, match=r"m: expected 2 files of weights, missing model-00002-of-00002\.safe"):
        model_files([path for path in MISTRAL if path != "model-00002-of-00002.safetensors"], "m")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["model.safetensors"], r"expected a config\.json beside the weights, found model\.safetensors"),
        (["config.json", "consolidated.safetensors"], "expected weights"),
        ([], "found nothing"),
    ],
)
def test_an_incomplete_model_is_refused(paths: list[str], expected: str) -> None:
    with pytest.raises(MissingInputError, match=expected):
        model_files(paths, "m")


def test_documents_and_tokenizer_files() -> None:
    assert document_files(MISTRAL) == ["LICENSE.txt", "README.md"]
    assert tokenizer_files(MISTRAL, "m") == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    with pytest.raises(MissingInputError, match=r"expected a tokenizer\.json or tokenizer\.model, found a"):
        tokenizer_files(["a"], "m")


CODE_ACT = ["README.md", "data/codeact-00000-of-00001.parquet", "data/general-00000-of-00002.parquet", "x.png"]


def test_a_split_is_found_by_file_name() -> None:
    assert data_files(CODE_ACT, "d", split="codeact") == ["data/codeact-00000-of-00001.parquet"]
    assert len(data_files(CODE_ACT, "d")) == 2
    assert data_files(["train.jsonl", "val.jsonl", "dataset_infos.json"], "d", split="validation") == ["val.jsonl"]


def test_a_card_names_the_files_of_config_and_split() -> None:
    card: list[dict[str, Any]] = [
        {"config_name": "small", "data_files": "small/*.jsonl"},
        {
            "config_name": "full",
            "default": True,
            "data_files": [{"split": "train", "path": ["a.jsonl", "b.jsonl"]}, {"split": "test", "path": "c.jsonl"}],
        },
    ]
    paths = ["a.jsonl", "b.jsonl", "c.jsonl", "small/x.jsonl"]
    assert data_files(paths, "d", card_configs=card) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert data_files(paths, "d", split="test", card_configs=card) == ["c.jsonl"]
    assert data_files(paths, "d", config="small", card_configs=card) == ["small/x.jsonl"]
    with pytest.raises(MissingInputError, match=r"expected a split of config 'full' \(train, test\), got 'dev'"):
        data_files(paths, "d", split="dev", card_configs=card)


def test_no_chat_file_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(MissingInputError, match=r"split 'test'.*, found README\.md, data/codeact"):
        data_files(CODE_ACT, "d", split="test")


def test_every_pattern_must_match_something() -> None:
    assert matching(["a/x.jsonl", "b.jsonl"], ["a/*", "*.jsonl"], "d") == ["a/x.jsonl", "b.jsonl"]
    with pytest.raises(MissingInputError, match=r"expected files that match 'c\*', found a"):
        matching(["a"], ["a", "c*"], "d")
