"""Reads a recipe file and says, for every mistake at once, the file, the line, the field and what was expected."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from stagecoach.errors import ConfigError
from stagecoach.recipe.problems import sentences
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.task_file import with_task_file

_MAX_RECIPE_BYTES = 1024 * 1024
_Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars mean what they mean in YAML 1.2: ``1e-5`` is a number, ``no`` and ``1:30`` are text.

    Aliases are refused: a recipe needs none, and a few lines of them can stand for billions of values. So is every tag
    that stands for something else than a text, a number, a list or a mapping.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed in a recipe", mark)
        return super().compose_node(parent, index)


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in ("bool", "int", "float", "null", "str", "seq", "map")
}
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(_pattern),
        [*_first.replace("\0", ""), *([""] if "\0" in _first else [])],
    )


def read_recipe(text: str, origin: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Recipe:
    """Return the recipe in ``text`` with ``overrides`` laid over it.

    Args:
        text: YAML (or JSON, which is YAML).
        origin: Name of the file, for messages.
        overrides: ``PATH=VALUE`` settings such as ``train.peak_lr=1e-5``; the value is read as YAML.
        folder: Where the name of a file of tasks begins; None allows none.

    Raises:
        ConfigError: With one line for each problem: ``file:line: field: what was expected, what was found``.
    """
    values, lines = _parse(text, origin)
    for override in overrides:
        _apply(values, lines, override)
    if folder is not None:
        values = with_task_file(values, folder)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error.errors(), values, lines, origin, Recipe))) from error


def recipe_json(recipe: Recipe) -> str:
    """Return the recipe as canonical JSON: sorted keys, no spaces, ASCII; ``read_recipe`` reads it back."""
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def _parse(text: str, origin: str) -> tuple[dict[str, Any], dict[_Path, str]]:
    if len(text.encode("utf-8", "replace")) > _MAX_RECIPE_BYTES:
        raise ConfigError(f"{origin}: expected a recipe of at most 1 MiB, got more")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else type(root).__name__.removesuffix("Node").lower()
            raise ConfigError(
                f"{origin}: expected a mapping with the sections model, data, pack, train, .., got {found}"
            )
        lines: dict[_Path, str] = {}
        for path, node in _walk(root, ()):
            if path in lines and path:
                raise ConfigError(f"{origin}:{node.start_mark.line + 1}: {_dotted(path)}: given twice")
            lines[path] = f"{origin}:{node.start_mark.line + 1}"
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{origin}:{line}: not valid YAML: {error.problem}") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # KeyError: `!!bool x`
        raise ConfigError(f"{origin}: not valid YAML: {str(error).splitlines()[0]}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _walk(node: yaml.Node, path: _Path) -> Iterator[tuple[_Path, yaml.Node]]:
    """Yield every field with its path; a field that is given twice comes twice."""
    yield path, node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _walk(value, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*path, index))


def _apply(values: dict[str, Any], lines: dict[_Path, str], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected PATH=VALUE, such as train.seed=7")
    path = tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))
    _check_known(path, dotted)
    value = _value(text, dotted)
    target: Any = values
    for part, following in pairwise(path):
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            target = target[part]
        elif isinstance(target, dict):
            if not isinstance(target.get(str(part)), (dict, list)):
                target[str(part)] = [] if isinstance(following, int) else {}
            target = target[str(part)]
        else:
            raise ConfigError(f"--set {dotted}: {part!r} names no item of the list before it")
    last = path[-1]
    if isinstance(target, list):
        if not (isinstance(last, int) and last < len(target)):
            raise ConfigError(f"--set {dotted}: {last!r} names no item of a list of {len(target)}")
        target[last] = value
    else:
        target[str(last)] = value
    lines[path] = f"--set {dotted}"


def _value(text: str, dotted: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"--set {dotted}: not valid YAML: {text[:80]!r}") from error


def _check_known(path: _Path, dotted: str) -> None:
    """Refuse a path whose first parts name no field; the model itself checks what is inside lists."""
    model: Any = Recipe
    for part in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return
        if part not in model.model_fields:
            near = difflib.get_close_matches(str(part), model.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(model.model_fields)}"
            raise ConfigError(f"--set {dotted}: there is no field {part!r}{hint}")
        model = model.model_fields[str(part)].annotation


def _dotted(path: _Path) -> str:
    return ".".join(str(part) for part in path)
