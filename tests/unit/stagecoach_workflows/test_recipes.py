"""The shipped recipes: each is valid, complete, and says what the documentation promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import stagecoach_workflows
from stagecoach.recipe.load import read_recipe
from stagecoach.recipe.recipe import Recipe

FOLDER = Path(next(iter(stagecoach_workflows.__path__))) / "recipes"
NAMES = ("codeact-mixture", "llama-2-7b-4xa100", "micro", "mistral-7b-4xa100", "smollm2-135m-cpu", "tiny-cpu")
SECTIONS = ("model", "data", "convert", "pack", "train", "export")


def recipe(name: str) -> Recipe:
    path = FOLDER / f"{name}.yaml"
    return read_recipe(path.read_text(encoding="utf-8"), str(path))


def test_these_recipes_are_shipped() -> None:
    assert set(NAMES) <= {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_named_like_its_file_and_described(name: str) -> None:
    assert recipe(name).name == name
    assert len(recipe(name).description) > 40


@pytest.mark.parametrize("name", NAMES)
def test_sections_stand_in_the_order_of_the_stages(name: str) -> None:
    sections = list(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    assert [section for section in sections if section in SECTIONS] == list(SECTIONS)


def test_the_first_run_needs_no_network_and_trains_in_two_processes() -> None:
    tiny = recipe("tiny-cpu")
    assert (tiny.model.source.kind, tiny.data.sources[0].source.kind) == ("seed", "embedded")
    assert (tiny.train.layout.world_size, tiny.train.gpus, tiny.shard.tensor_parallel) == (2, 0, 2)


def test_the_headline_run_is_the_one_that_was_published() -> None:
    train = recipe("mistral-7b-4xa100").train
    assert (train.layout.tensor_parallel, train.gpus, train.epochs, train.packs_per_step) == (4, 4, 5, 32)
    assert (train.lr, train.min_lr, train.schedule, train.warmup_steps) == (1e-5, 1e-6, "cosine", 50)
    assert recipe("mistral-7b-4xa100").pack.pack_tokens == 16_384
    assert recipe("llama-2-7b-4xa100").pack.pack_tokens == 4_096
    assert train.total_steps(num_packs=4_833) == 756  # ceil(5 x 4,833 / 32)
