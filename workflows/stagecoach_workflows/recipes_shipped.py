"""Finds a recipe by the name of one that is shipped, or by its file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from stagecoach.errors import ConfigError
from stagecoach.recipe.load import read_recipe
from stagecoach.recipe.recipe import Recipe


def shipped_names() -> list[str]:
    """Return the names of the recipes that come with Stagecoach, sorted."""
    folder = files("stagecoach_workflows") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that a user names, with ``PATH=VALUE`` settings laid over it.

    Raises:
        ConfigError: There is no such recipe or file, or it is not valid; one line for each problem.
    """
    text, origin = _text(name_or_file)
    return read_recipe(text, origin, overrides, Path(origin).parent)


def _text(name_or_file: str) -> tuple[str, str]:
    if "/" not in name_or_file and name_or_file in shipped_names():
        resource = files("stagecoach_workflows") / "recipes" / f"{name_or_file}.yaml"
        return resource.read_text(encoding="utf-8"), f"{name_or_file}.yaml"
    try:
        return Path(name_or_file).read_text(encoding="utf-8"), name_or_file
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {name_or_file!r}: expected a readable YAML file or one of {', '.join(shipped_names())};"
            f" got: {error.strerror if isinstance(error, OSError) else 'not UTF-8 text'}"
        ) from error
