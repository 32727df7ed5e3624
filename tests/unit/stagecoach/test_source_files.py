"""Which files of a repository are taken, on listings as they really occur."""

from __future__ import annotations

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


RANKS = [f"iter_0000152/mp_rank_{tp:02d}_{pp:03d}/model_rng.pt" for tp in (0, 1) for pp in (0, 1)]
ORIGINAL = [
    *RANKS,
    *(path.replace("model_rng.pt", "optim.pt") for path in RANKS),
    "config.json",
    "latest_checkpointed_iteration.txt",
    "tokenizer.model",
]


def test_rank_files_of_the_original_system_are_taken_without_their_optimizer() -> None:
    assert model_files(ORIGINAL, "m") == ["config.json", *RANKS, "latest_checkpointed_iteration.txt"]
    assert model_files([*ORIGINAL, "model.safetensors"], "m") == ["config.json", "model.safetensors"]


def test_several_iterations_need_what_names_one() -> None:
    other = "release/mp_rank_00/model_optim_rng.pt"
    assert other in model_files([*ORIGINAL, other], "m")
    with pytest.raises(MissingInputError, match=r"beside several iterations \(iter_0000152, release\)"):
        model_files([*ORIGINAL[:-2], other], "m")


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


def test_every_chat_file_of_a_folder_is_taken() -> None:
    assert data_files(["b.jsonl.gz", "a/x.parquet", "README.md", "dataset_infos.json"], "d") == [
        "a/x.parquet",
        "b.jsonl.gz",
    ]


def test_no_chat_file_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(MissingInputError, match=r"d: expected chat files .*, found README\.md"):
        data_files(["README.md"], "d")


def test_every_pattern_must_match_something() -> None:
    assert matching(["a/x.jsonl", "b.jsonl"], ["a/*", "*.jsonl"], "d") == ["a/x.jsonl", "b.jsonl"]
    with pytest.raises(MissingInputError, match=r"expected files that match 'c\*', found a"):
        matching(["a"], ["a", "c*"], "d")
