"""What must not change unnoticed: content keys, the kind and default of every recipe field, and the stages' bytes.

A key that changes makes every finished output of that kind be made again; bytes that change under the same key break
the promise that equal keys mean equal outputs (count up the task's ``output_version`` then). After such a decision,
``pytest tests/golden --regenerate`` (or STAGECOACH_REGENERATE=1) writes the files anew; CI never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stagecoach.errors import UnavailableError
from stagecoach.recipe.base import effect_of
from stagecoach.recipe.recipe import Recipe
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing
from stagecoach.stages import TASKS
from stagecoach_workflows.decisions import candidates, task_configs
from stagecoach_workflows.recipes_shipped import load_recipe, shipped_names
from tests.micro_run import MicroWork

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once
KEYS = Path(__file__).with_name("keys.json")
FIELDS = Path(__file__).with_name("fields.json")
OUTPUTS = Path(__file__).with_name("outputs.json")
DETERMINISTIC = ("download-model", "download-tokenizer", "download-data-demo", "convert", "shard", "pack")
"""Tasks whose bytes are the same on any machine; train's are not, nor export's, which reads them."""
OFFLINE = ["micro", "tiny-cpu"]


def test_the_keys_of_shipped_recipes_are_pinned(request: pytest.FixtureRequest) -> None:
    keys = {name: keys_of(load_recipe(name)) for name in shipped_names() if resolves_offline(load_recipe(name))}
    assert sorted(keys) == OFFLINE
    compare(KEYS, keys, request)


def test_kind_and_default_of_every_field_are_pinned(request: pytest.FixtureRequest) -> None:
    fields: dict[str, dict[str, str]] = {}
    roots: list[type[BaseModel]] = [Recipe, *(kind.config for kind in TASKS.values())]
    for section in sections(roots):
        assert section.__name__ not in fields, "two sections of one name"
        fields[section.__name__] = {name: described(field) for name, field in section.model_fields.items()}
    compare(FIELDS, fields, request)


def test_the_bytes_of_deterministic_stages_are_pinned(request: pytest.FixtureRequest, micro: MicroWork) -> None:
    compare(OUTPUTS, {task: micro.digests(task) for task in DETERMINISTIC}, request)


def compare(file: Path, found: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Compare with the committed file, or write it where that was asked for."""
    if request.config.getoption("--regenerate"):
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == found, f"{file.name} differs; read this file's docstring"


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Return the key of every task."""
    configs = task_configs(recipe, Settings(), no_hub)
    return {task: candidate.key for task, candidate in candidates(recipe, configs).items()}


def resolves_offline(recipe: Recipe) -> bool:
    """Whether every source of the recipe is part of Stagecoach itself."""
    sources = [recipe.model.source, recipe.model.tokenizer, *(item.source for item in recipe.data.sources)]
    return all(source is None or source.kind in ("seed", "embedded") for source in sources)


def no_hub(*arguments: Any) -> HubListing:
    """Refuse to ask the Hub."""
    raise UnavailableError("this test asks nobody")


def sections(found: list[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Yield these models and all that their fields hold, each once."""
    seen: set[type[BaseModel]] = set()
    while found:
        model = found.pop()
        if model not in seen:
            seen.add(model)
            yield model
            for field in model.model_fields.values():
                found.extend(models_in(field.annotation))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a field's type: itself, or inside unions, lists and ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def described(field: FieldInfo) -> str:
    """Return ``<kind>: <default>``; Recipe's own fields are sections and have no kind."""
    kind = effect_of(field) or "section"
    if field.is_required():
        return f"{kind}: required"
    return f"{kind}: {as_text(field.get_default(call_default_factory=True))}"


def as_text(value: Any) -> str:
    """Return a default as JSON; a nested section only by its name, its own fields are listed there."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    return json.dumps(value, default=str)
