"""JSON as the standard defines it: no NaN, no duplicate keys, no endless nesting; each of them is an error with a
reason.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice in one object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
"""Decoder with these rules; ``raw_decode`` reads one value from the middle of a text."""


_WORDS = {
    "Expecting value": "a value is missing",
    "Expecting ',' delimiter": "',' or a closing bracket is missing",
    "Expecting ':' delimiter": "':' is missing",
    "Expecting property name enclosed in double quotes": "a name in double quotes is missing",
    "Illegal trailing comma before end of object": "a ',' has nothing behind it",
    "Illegal trailing comma before end of array": "a ',' has nothing behind it",
    "Unterminated string starting at": "a text begins that does not end",
    "Invalid control character at": "a text holds a line break or another control character",
    "Invalid \\escape": "a text holds an unknown escape",
    "Invalid \\uXXXX escape": "a text holds an incomplete \\u escape",
    "Extra data": "something follows the value",
}


def reason(error: ValueError, start: int = 0) -> str:
    """Return in one phrase why a text is not JSON, and at which of its characters, from 1.

    Args:
        error: What ``loads`` or ``DECODER`` raised; Python's own text counts lines, which a row has none of.
        start: Where in the decoded text the row begins.
    """
    if not isinstance(error, json.JSONDecodeError):
        return str(error)[:120]
    return f"{_WORDS.get(error.msg, error.msg)} at character {error.pos - start + 1}"


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON under these rules; nesting too deep for the parser included.
    """
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
