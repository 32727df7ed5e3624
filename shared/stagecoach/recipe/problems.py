"""Turns what pydantic says about a recipe into one sentence a mistake, with the field as the file spells it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

Path = tuple[str | int, ...]

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a section with fields",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "model_type": "a section with fields",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} item",
    "tuple_type": "a list",
    "union_tag_invalid": "a source whose kind is {expected_tags}",
    "union_tag_not_found": "a source with a kind",
}
"""What pydantic's kinds of errors expected, in words of a recipe; the rest keep pydantic's own sentence."""


def sentences(problems: Sequence[Any], values: Any, lines: Mapping[Path, str], origin: str, model: Any) -> list[str]:
    """Return one sentence for each mistake: ``file:line: field: what was expected, what was found``.

    Args:
        problems: ``ValidationError.errors()``.
        values: What the file says.
        lines: Where each field of it stands.
        origin: The file, for what stands nowhere.
        model: The section that was validated, for suggestions.
    """
    by_field: dict[Path, list[Any]] = {}
    for problem in problems:
        by_field.setdefault(_path_in_file(problem["loc"], values), []).append(problem)
    found = []
    for path, group in by_field.items():
        deeper = any(other[: len(path)] == path and len(other) > len(path) for other in by_field)
        if deeper and {problem["type"] for problem in group} <= {"too_short", "tuple_type"}:
            continue  # a list whose items are wrong, or the list form of a field that was given as something else
        where = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), origin)
        found.append(f"{where}: {_said(path, group, model)}")
    return found


def _path_in_file(loc: Path, values: Any) -> Path:
    """Return where the mistake is in the file; pydantic also names the branch of a union that it tried."""
    path: list[str | int] = []
    inside, entered = values, True
    for at, part in enumerate(loc):
        if isinstance(inside, dict) and entered and inside.get("kind") == part and isinstance(part, str):
            entered = False
            continue
        is_field = isinstance(inside, dict) and isinstance(part, str)
        is_item = isinstance(inside, (list, tuple)) and isinstance(part, int)
        if not (is_field or is_item):
            continue
        path.append(part)
        last = at == len(loc) - 1
        if is_field:
            inside = inside.get(part)
        else:
            inside = inside[int(part)] if int(part) < len(inside) else None
        entered = True
        if inside is None and not last:
            break
    return tuple(path)


def _said(path: Path, group: list[Any], model: Any) -> str:
    first = group[0]
    name = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return f"{name}: unknown field{_near(path, model)}"
    if first["type"] == "invalid_key":
        return f"{name or 'recipe'}: expected fields whose names are texts, got the name {first.get('input')!r}"
    if first["type"] == "missing":
        return f"{name}: missing; it has no default"
    if first["type"] == "value_error":
        return f"{name or 'recipe'}: {first['msg'].removeprefix('Value error, ')}"
    return f"{name}: expected {' or '.join(dict.fromkeys(_expected(group)))}, got {_shown(first.get('input'))}"


def _expected(group: list[Any]) -> Iterator[str]:
    for problem in group:
        wanted = _EXPECTED.get(problem["type"])
        said = problem["msg"]
        yield wanted.format(**problem.get("ctx", {})) if wanted else said[:1].lower() + said[1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"kind {str(value['kind'])[:40]!r}"
            if "kind" in value
            else f"a section with {', '.join(value) or 'nothing'}"[:120]
        )
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else repr(str(value)[:80])


def _near(path: Path, model: Any) -> str:
    for part in path[:-1]:
        fields = getattr(model, "model_fields", {})
        model = fields[part].annotation if part in fields else None
    is_section = isinstance(model, type) and issubclass(model, BaseModel)
    near = difflib.get_close_matches(str(path[-1]), model.model_fields if is_section else (), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
