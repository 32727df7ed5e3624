"""Recipes that are no recipe, name what is not there, or have several mistakes, refused by ``stagecoach check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.recipe_fields import Rows, ids, write
from tests.bad_inputs.refusals import command

SOURCES: Rows = (
    (
        "model.source",
        {"kind": "directory", "path": "/nonexistent/x"},
        "/nonexistent/x: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "model.source",
        {"kind": "release", "name": "nobody"},
        "release nobody: nothing has been promoted under this name in ",
    ),
    (
        "model.source",
        {"kind": "export", "export": "exports/x-0123456789abcdef0123/"},
        (
            "/store/exports/x-0123456789abcdef0123/: no finished output here (no manifest.json); run the stage "
            "that makes it"
        ),
    ),
    (
        "model.tokenizer",
        {"kind": "directory", "path": "/nonexistent"},
        "/nonexistent: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "data.sources.0.source",
        {"kind": "directory", "path": "/nonexistent/chat.jsonl"},
        "/nonexistent/chat.jsonl: expected a folder or file, found nothing; correct the source's path",
    ),
    (
        "data.sources.0.source",
        {"kind": "directory", "path": "/etc/hostname"},
        "/etc/hostname: expected chat files (.jsonl, .json or .parquet, also .gz or .zst), found hostname",
    ),
)
"""What is only known to be missing when somebody looks."""

TEXTS: tuple[tuple[str, bytes, str], ...] = (
    ("empty", b"", "expected a mapping with the sections model, data, pack, train, .., got nothing"),
    ("only a comment", b"# nothing\n", "got nothing"),
    ("a list", b"- a\n", "got sequence"),
    ("a word", b"hello", "got scalar"),
    ("unclosed", b"name: [", ":1: not valid YAML: expected the node content"),
    ("a tab", b"a:\n\tb: 1", ":2: not valid YAML: found character '\\t'"),
    ("a Python tag", b"a: !!python/object:os.system x", ":1: not valid YAML: could not determine a constructor"),
    ("a time", b"a: !!timestamp x", ":1: not valid YAML: could not determine a constructor"),
    ("a set", b"a: !!set {b}", ":1: not valid YAML: could not determine a constructor"),
    ("a bad bool", b"a: !!bool x", "not valid YAML: 'x'"),
    ("an alias", b"a: &a [1]\nb: [*a, *a]", ":2: not valid YAML: aliases (*name) are not allowed"),
    ("a bomb", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ":2: not valid YAML: aliases"),
    ("large", b"x" * 2_000_000, "expected a recipe of at most 1 MiB, got more"),
    ("deep", b"[" * 10_000, "not valid YAML"),
    ("binary", bytes(range(256)), "not UTF-8 text"),
    ("UTF-16", "name: x".encode("utf-16"), "not UTF-8 text"),
    ("NUL", b"name: \0", "not valid YAML: unacceptable character #x0000"),
    ("a field twice", b"name: a\nname: b\n", ":2: name: given twice"),
    ("two documents", b"name: a\n---\nname: b\n", ":2: not valid YAML: but found another document"),
    ("a list as a name", b"[1]: 2\n", ":1: not valid YAML: found unhashable key"),
    ("cut JSON", b'{"name": "x"', ":1: not valid YAML"),
)


@pytest.mark.parametrize(("dotted", "value", "sentence"), SOURCES, ids=ids(SOURCES))
def test_a_source_that_is_not_there(dotted: str, value: Any, sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path, dotted, value)
    command(tmp_path, "check", str(file), "--work", str(tmp_path / "work")).assert_refused(66, sentence)


@pytest.mark.parametrize(("content", "sentence"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_text_that_is_no_recipe(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    command(tmp_path, "check", str(file), "--work", str(tmp_path / "work")).assert_refused(78, str(file), sentence)


def test_several_mistakes_are_a_sentence_each(tmp_path: Path) -> None:
    file = write(tmp_path, "train.steps", "many")
    file.write_text(file.read_text(encoding="utf-8").replace("pack_tokens: 512", "pack_tokens: few"), encoding="utf-8")
    done = command(tmp_path, "check", str(file), "--work", str(tmp_path / "work"))
    assert (done.exit_code, [line.split(": ")[1] for line in done.sentences]) == (
        78,
        ["pack.pack_tokens", "train.steps"],
    )
