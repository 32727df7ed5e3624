"""Reads the questions with checkable answers that ``train.tasks`` names by a file, so that they can be kept and shared.

    {"prompt": "What is the capital of France?", "expected": "Paris"}     one a line, JSON

They become part of the recipe where it is read: a run depends on no file that its cluster does not have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecoach.errors import ConfigError
from stagecoach.recipe.train import AnswerTask

MAX_BYTES = 64 * 1024  # a recipe travels to the cluster as one argument


def with_task_file(values: Any, folder: Path) -> Any:
    """Return a recipe's values with the lines of the file that ``train.tasks`` names in place of its name.

    Args:
        values: What the recipe says, not validated yet.
        folder: Where a relative name begins.

    Raises:
        ConfigError: The file cannot be read, is too large, or a line is no question with an answer.
    """
    train = values.get("train") if isinstance(values, dict) else None
    if not isinstance(train, dict) or not isinstance(name := train.get("tasks"), str):
        return values
    return {**values, "train": {**train, "tasks": _read(folder / name, name)}}


def _read(file: Path, name: str) -> list[dict[str, Any]]:
    try:
        size_bytes = file.stat().st_size
        text = file.read_text(encoding="utf-8") if size_bytes <= MAX_BYTES else ""
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"train.tasks: expected a list of questions, or a file of them with a JSON object a line, got {name!r}: {got}"
        ) from error
    if size_bytes > MAX_BYTES:
        raise ConfigError(f"train.tasks: {name}: expected at most {MAX_BYTES} bytes, got {size_bytes}; leave some out")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"train.tasks: {name}: expected a JSON object a line, got nothing")
    return [_task(f"train.tasks: {name}:{number}", line) for number, line in lines]


def _task(where: str, line: str) -> dict[str, Any]:
    try:
        return AnswerTask.model_validate(json.loads(line)).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{where}: {field or 'the line'}: {problem['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{where}: expected JSON such as {{"prompt": "..", "expected": ".."}}: {error}') from error
