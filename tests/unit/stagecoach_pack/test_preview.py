"""What people see before they pack: coloured conversations and token counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.preview import data_statistics, preview, preview_text, statistics_table
from stagecoach_pack.sources.readers import DataFile
from tests.unit.stagecoach_pack.chat_tokenizers import chat_tokenizer
from tests.unit.stagecoach_pack.packing_runs import json_lines

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
DATA = DataConfig(name="d", sources=(DataSource(name="s", source=EmbeddedSource()),))


def data_file(folder: Path, *rows: object) -> DataFile:
    (folder / "x.jsonl").write_bytes(json_lines(*rows))
    return DataFile("x.jsonl", folder / "x.jsonl")


def test_trained_text_is_green(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("smollm2")
    (shown,) = preview(DATA, {"s": [data_file(tmp_path, TALK)]}, tokenizer)
    text = preview_text(shown, tokenizer)
    assert text.plain.splitlines()[1:] == [
        "<|im_start|>user",
        "Hi<|im_end|>",
        "<|im_start|>assistant",
        "Hello!<|im_end|>",
        "",
    ]
    green = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert green == ["Hello!<|im_end|>"]


def test_ids_stand_behind_their_tokens(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("mistral")
    (shown,) = preview(DATA, {"s": [data_file(tmp_path, TALK)]}, tokenizer)
    assert (
        "\u2581assistant\u00b713892 <0x0A>\u00b713 \nHello\u00b716230 !\u00b728808 <|im_end|>\u00b732001 "
        in preview_text(shown, tokenizer, with_ids=True).plain
    )


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_conversation_cannot_steer_the_terminal(with_ids: bool, tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "\x1b[2J\x9b"}, {"role": "assistant", "content": "\x1b]0;x\x07"}]}
    tokenizer = chat_tokenizer("mistral")
    (shown,) = preview(DATA, {"s": [data_file(tmp_path, talk)]}, tokenizer)
    text = preview_text(shown, tokenizer, with_ids=with_ids).plain
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert with_ids or "\\x1b[2J\\x9b" in text


def test_only_the_first_rows_of_each_source_are_shown(tmp_path: Path) -> None:
    found = list(preview(DATA, {"s": [data_file(tmp_path, *[TALK] * 9)]}, chat_tokenizer("smollm2"), rows=2))
    assert [shown.origin for shown in found] == ["s/x.jsonl: row 1", "s/x.jsonl: row 2"]


def test_a_row_that_cannot_be_packed_says_why(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": "u"}, {"role": "system", "content": "late"}]}
    tokenizer = chat_tokenizer("llama2-template")
    (shown,) = preview(DATA, {"s": [data_file(tmp_path, odd)]}, tokenizer)
    assert "only user and assistant" in preview_text(shown, tokenizer).plain


def test_statistics_count_rows_and_tokens(tmp_path: Path) -> None:
    (found,) = data_statistics([data_file(tmp_path, TALK, TALK)], chat_tokenizer("mistral"))
    assert (found.num_rows, found.num_tokens, found.num_trained_tokens, found.longest_tokens) == (2, 32, 6, 16)
    assert found.mean_tokens == 16.0
    table = statistics_table([found, found])
    assert [list(column.cells) for column in table.columns][:3] == [
        ["x.jsonl", "x.jsonl", "all"],
        ["2", "2", "4"],
        ["32", "32", "64"],
    ]


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (b"{", "x.jsonl", r"^x\.jsonl: row 1: expected one JSON value .*, found '{'; correct the data$"),
        (
            b"{}\n[]",
            "x.jsonl",
            r"^2 bad rows; correct the data:\n  x\.jsonl: row 1: expected .*\n  x\.jsonl: row 2: expected",
        ),
        (
            json_lines(TALK, {"messages": 5}),
            "x.jsonl",
            r"^x\.jsonl: row 2: messages: expected a list.*; correct the data$",
        ),
        (b"", "x.jsonl", r"^x\.jsonl: expected at least one row"),
        (b"a", "README.md", r"^chat files: expected at least one data file, got README\.md$"),
    ],
)
def test_statistics_of_a_damaged_file_are_an_error(content: bytes, name: str, sentence: str, tmp_path: Path) -> None:
    """No recipe was given: the sentence names none of its sources, and none of its fields as the way out."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        list(data_statistics([DataFile(name, tmp_path / name)], chat_tokenizer("mistral")))
