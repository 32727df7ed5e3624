"""A file of prompts: JSON lines in, checked before a model is loaded, and JSON lines out in the same order."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from stagecoach.errors import ConfigError, DataError

_ROW = '{"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]}'


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; each has ``messages``, and keeps every other field.

    Raises:
        ConfigError: There is no such file.
        DataError: A row is not of one of the two forms, or there is none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"PROMPTS: expected a readable file of JSON lines, {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: expected UTF-8, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    rows = [_row(line, f"{file} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{file}: expected rows such as {_ROW}, got an empty file")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected one JSON object, got: {error}") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise DataError(f"{where}: expected {_ROW}, got {line[:80]!r}")
    if isinstance(row.get("prompt"), str):
        return {**row, "messages": [{"role": "user", "content": row["prompt"]}]}
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise DataError(f"{where}: expected {_ROW}, got {line[:80]!r}")
    return row


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message


@contextmanager
def answers_file(path: Path | None) -> Iterator[TextIO]:
    """Open where answers go: standard output, or a file that appears once all of them are written.

    Raises:
        ConfigError: The file cannot be written.
    """
    if path is None:
        yield sys.stdout
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
    except OSError as error:
        raise ConfigError(f"--output: cannot write {path}: {error.strerror}") from error
    try:
        with partial.open("w", encoding="utf-8") as stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_rows(stream: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, each as soon as it is known."""
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()
