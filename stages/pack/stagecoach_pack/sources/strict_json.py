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


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON under these rules; nesting too deep for the parser included.
    """
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
