"""The micro recipe with one field changed, and how ``stagecoach check`` has to refuse it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import stagecoach_workflows
from tests.bad_inputs.refusals import command

Rows = tuple[tuple[str, Any, str], ...]
"""A field of the micro recipe, what it is set to, and the sentence behind file and line."""
MICRO = Path(stagecoach_workflows.__path__[0]) / "recipes/micro.yaml"
REMOVED = object()
NAME = (
    "expected 1 to 63 characters of a-z, 0-9, '.', '_', '-' that begin and end with a letter or digit and hold no '..'"
)


def put(recipe: dict[str, Any], dotted: str, value: Any) -> None:
    """Set or remove one field."""
    *path, last = (int(part) if part.isdecimal() else part for part in dotted.split("."))
    inside: Any = recipe
    for part in path:
        inside = inside.setdefault(part, {}) if isinstance(inside, dict) else inside[part]
    if value is REMOVED:
        del inside[last]
    else:
        inside[last] = value


def write(folder: Path, dotted: str, value: Any) -> Path:
    """Write the micro recipe with one other field."""
    recipe = yaml.safe_load(MICRO.read_text(encoding="utf-8"))
    put(recipe, dotted, value)
    file = folder / "bad.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def ids(rows: Rows) -> list[str]:
    """Return a short name of each row."""
    return [f"{row[0]}={'removed' if row[1] is REMOVED else str(row[1])[:40]}" for row in rows]


def refuse_field(dotted: str, value: Any, sentence: str, folder: Path) -> None:
    """Check the recipe: exactly this sentence, with file and line where the field stands in it."""
    file = write(folder, dotted, value)
    done = command(folder, "check", str(file), "--work", str(folder / "work"))
    done.assert_refused(78, sentence)
    assert re.fullmatch(rf"(?:{re.escape(str(file))}:\d+: )?{re.escape(sentence)}", done.sentences[0])
