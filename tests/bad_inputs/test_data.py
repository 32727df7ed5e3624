"""Chat files with something wrong in them, through the pack stage itself: file, row, place, expected, found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.bad_inputs.refusals import download, stage
from tests.tiny_models import tokenizer_directory

GOOD = [
    {"messages": [{"role": "user", "content": f"w5 w{number}"}, {"role": "assistant", "content": "w7"}]}
    for number in range(10, 20)
]
USER = {"role": "user", "content": "w5"}
ANSWER = {"role": "assistant", "content": "w7"}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def talk(*messages: Any) -> bytes:
    """Ten good rows and one of these messages."""
    return lines(*GOOD, {"messages": list(messages)})


def text(row: str) -> bytes:
    return lines(*GOOD) + row.encode() + b"\n"


ROWS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no messages": (lines(*GOOD, {"messages": []}), ("at least one message",)),
    "messages is null": (lines(*GOOD, {"messages": None}), ("messages",)),
    "messages is a text": (lines(*GOOD, {"messages": "hello"}), ("messages",)),
    "messages is an object": (lines(*GOOD, {"messages": {}}), ("messages",)),
    "row is a list": (lines(*GOOD, [1, 2]), ("found",)),
    "row is a number": (lines(*GOOD, 5), ("found",)),
    "row is null": (lines(*GOOD, None), ("found",)),
    "row is empty": (lines(*GOOD, {}), ("messages",)),
    "another schema": (lines(*GOOD, {"prompt": "w5", "completion": "w7"}), ("messages",)),
    "unknown role": (talk(USER, {"role": "wizard", "content": "x"}), ("messages[1].role", "'wizard'")),
    "role is missing": (talk({"content": "x"}, ANSWER), ("messages[0]", "role")),
    "role is a number": (talk({"role": 5, "content": "x"}, ANSWER), ("messages[0].role", "5")),
    "role is empty": (talk({"role": "", "content": "x"}, ANSWER), ("messages[0].role",)),
    "content is missing": (talk({"role": "user"}, ANSWER), ("messages[0]", "content")),
    "content is null": (talk({"role": "user", "content": None}, ANSWER), ("messages[0].content",)),
    "content is a number": (talk({"role": "user", "content": 5}, ANSWER), ("messages[0].content", "5")),
    "content is an object": (talk({"role": "user", "content": {"a": 1}}, ANSWER), ("messages[0].content",)),
    "an image": (
        talk({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER),
        ("messages[0].content", "image_url"),
    ),
    "message is a text": (talk("hello", ANSWER), ("messages[0]",)),
    "message is null": (talk(None, ANSWER), ("messages[0]",)),
    "unknown field": (talk({**USER, "mood": "good"}, ANSWER), ("messages[0]", "mood")),
    "half a surrogate": (text('{"messages": [{"role": "user", "content": "\\ud800"}]}'), ("that has a UTF-8 form",)),
    "tool call without a name": (
        talk(USER, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {}}]}),
        ("messages[1].tool_calls",),
    ),
    "tool calls are a text": (talk(USER, {"role": "assistant", "content": "", "tool_calls": "f"}), ("tool_calls",)),
    "tools are a number": (lines(*GOOD, {"messages": [USER, ANSWER], "tools": 5}), ("tools",)),
    "weight of one half": (talk(USER, {**ANSWER, "weight": 0.5}), ("messages[1].weight", "0.5")),
    "cut": (text('{"messages": ['), ("expected one JSON value (a value is missing at character 15)", "found '{")),
    "bare word": (text("hello"), ("a value is missing at character 1",)),
    "single quotes": (text("{'messages': []}"), ("a name in double quotes is missing at character 2",)),
    "NaN": (text('{"messages": NaN}'), ("NaN is not JSON",)),
    "key twice": (text('{"messages": [], "messages": []}'), ("the key 'messages' is given twice",)),
    "two values": (text('{"messages": []} {}'), ("something follows the value at character 18",)),
    "huge number": (text('{"messages": ' + "9" * 5000 + "}"), ("one JSON value",)),
    "deep": (text("[" * 100_000), ("nested too deeply",)),
    "not UTF-8": (lines(*GOOD) + b'{"messages": "\xff"}\n', ("expected UTF-8 text", "byte 0xff")),
}
"""The eleventh row; its sentence names file, row and these words."""

FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("chat.jsonl", b"", ("expected at least one row, got an empty file",)),
    "only blank lines": ("chat.jsonl", b"\n \n\n", ("expected at least one row, got an empty file",)),
    "an empty array": ("chat.json", b"[]", ("expected at least one row, got an empty file",)),
    "a cut array": ("chat.json", json.dumps(GOOD).encode()[:-40], ("row 10: expected a JSON value", "cannot be found")),
    "an array without a comma": ("chat.json", b'[{"messages": []} {"messages": []}]', ("expected ','",)),
    "an array and more": ("chat.json", b'[{"messages": []}]\n{}', ("is it JSON lines?",)),
    "an indented object": (
        "chat.json",
        json.dumps(GOOD[0], indent=1).encode(),
        ("row 1: expected one JSON value a line", "jq -c"),
    ),
    "rows in one object": (
        "chat.json",
        json.dumps({"version": 1, "data": GOOD}).encode(),
        ("row 1: expected one conversation; write the rows of 'data' one a line",),
    ),
    "an empty conversation first": (
        "chat.jsonl",
        lines({"messages": []}, *GOOD),
        ("row 1: messages: expected at least one message, found 'none'",),
    ),
    "messages as JSON text": (
        "chat.jsonl",
        lines({"messages": json.dumps(GOOD[0]["messages"])}),
        ("row 1: messages: expected a list, found a text that holds one as JSON: decode it",),
    ),
    "messages as rows": (
        "chat.jsonl",
        lines(GOOD[0]["messages"], GOOD[1]["messages"]),
        ("is it JSON lines whose rows are lists (each has to be an object",),
    ),
    "UTF-16": ("chat.jsonl", lines(*GOOD).decode().encode("utf-16"), ("got UTF-16", "iconv")),
    "an unknown ending": ("chat.csv", b"a,b\n", ("chat.csv: expected a file that ends in .jsonl",)),
    "no ending": ("chat", lines(*GOOD), ("chat: expected a file that ends in .jsonl",)),
    "an archive": ("chat.zip", b"PK\3\4", ("chat.zip: expected a file that ends in",)),
    "no parquet": ("chat.parquet", b"PAR1 not", ("expected a parquet file", "download it again")),
    "no gzip": ("chat.jsonl.gz", lines(*GOOD), ("expected a whole gzip file",)),
    "a cut gzip": ("chat.jsonl.gz", gzip.compress(lines(*GOOD))[:-20], ("expected a whole gzip file",)),
    "no zstd": ("chat.jsonl.zst", lines(*GOOD), ("expected a whole zstd file",)),
    "a cut zstd": ("chat.jsonl.zst", zstandard.compress(lines(*GOOD))[:-9], ("expected a whole zstd file",)),
    "a gzip bomb": ("chat.jsonl.gz", gzip.compress(b" " * 2**24) * 5, ("more than 500 times larger",)),
    "a zstd bomb": ("chat.jsonl.zst", zstandard.compress(b" " * 2**27), ("more than 500 times larger",)),
    "a row longer than a pack": (
        "chat.jsonl",
        talk({"role": "user", "content": "w5 " * 100}, ANSWER),
        ("row 11: expected at most pack.pack_tokens = 64 tokens, got 107",),
    ),
    "a table without columns": ("chat.jsonl", b"{}\n" * 3, ("row 1",)),
}

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a format that is not there": (
        {"format": "sharegpt"},
        {},
        {},
        ("own: chat.jsonl: row 1: messages[0].value: expected text",),
    ),
    "a column that is not there": (
        {"columns": {"messages": "talks"}},
        {},
        {},
        ("own: chat.jsonl: row 1: ", "`format` and `columns`"),
    ),
    "more rows than there are": ({"rows": 50}, {}, {}, ("rows", "50", "10")),
    "nothing is long enough": ({"min_turns": 9}, {}, {}, ("own",)),
    "everything held out": ({}, {}, {"heldout_num": 10}, ("held",)),
    "more held out than there is": ({}, {}, {"heldout_num": 50}, ("held",)),
    "everything too long": ({}, {}, {"pack_tokens": 8, "too_long": "drop"}, ("pack_tokens",)),
}


class Data:
    """A tokenizer in a store, and one data source that is packed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        tokenizer = folder / "tokenizer"
        tokenizer.mkdir()
        for name, data in tokenizer_directory().items():
            (tokenizer / name).write_bytes(data)
        self.tokenizer = download(folder, self.store, "download-tokenizer", tokenizer, chat_format="chatml")

    def refuse(
        self,
        name: str,
        data: bytes,
        *words: str,
        source: dict[str, Any] | None = None,
        mixture: dict[str, Any] | None = None,
        pack: dict[str, Any] | None = None,
    ) -> None:
        """Pack one file and see that it is refused with these words."""
        files = self.folder / "files"
        files.mkdir()
        (files / name).write_bytes(data)
        inputs = {
            "tokenizer": self.tokenizer,
            "data-own": download(self.folder, self.store, "download-data", files),
        }
        own = {"name": "own", "source": {"kind": "directory", "path": str(files)}, **(source or {})}
        config = {
            "data": {"name": "chat", "sources": [own], **(mixture or {})},
            "pack": {"pack_tokens": 64, "too_long": "error", **(pack or {})},
        }
        (self.folder / "pack.json").touch()
        done = stage(self.folder, self.store, "pack", {"task": "pack", "name": "x", "inputs": inputs, "config": config})
        done.assert_refused(79, *words)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setenv("STAGECOACH_SCRATCH", str(tmp_path / "scratch"))
    return Data(tmp_path)


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row(case: str, data: Data) -> None:
    content, words = ROWS[case]
    data.refuse("chat.jsonl", content, "own: chat.jsonl: row 11: ", *words)


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(case: str, data: Data) -> None:
    name, content, words = FILES[case]
    data.refuse(name, content, name, *words)


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit_the_data(case: str, data: Data) -> None:
    source, mixture, pack, words = SETTINGS[case]
    data.refuse("chat.jsonl", lines(*GOOD), *words, source=source, mixture=mixture, pack=pack)
