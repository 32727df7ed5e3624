"""Questions from a file become part of the recipe, and what is wrong in it is one sentence with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.recipe.load import read_recipe, recipe_json
from stagecoach.recipe.task_file import MAX_BYTES
from stagecoach_workflows.recipes_shipped import load_recipe

RECIPE = (Path(__file__).parents[4] / "workflows/stagecoach_workflows/recipes/micro.yaml").read_text(encoding="utf-8")
LINE = '{"prompt": "2 + 2?", "expected": "4"}'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def test_the_file_lies_beside_the_recipe_and_becomes_part_of_it(recipe: Path) -> None:
    (recipe.parent / "q.jsonl").write_text(f"{LINE}\n\n{LINE.replace('4', 'four')}\n", encoding="utf-8")
    loaded = load_recipe(str(recipe), ["train.tasks=q.jsonl"])
    assert [(task.prompt, task.expected) for task in loaded.train.tasks] == [("2 + 2?", "4"), ("2 + 2?", "four")]
    assert read_recipe(recipe_json(loaded), "the plan") == loaded


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "got 'q.jsonl': No such file"),
        ("", "q.jsonl: expected a JSON object a line, got nothing"),
        (f"{LINE}\nParis", "q.jsonl:2: expected JSON such as"),
        ('{"prompt": "x"}', "q.jsonl:1: expected: Field required"),
        ('{"prompt": "x", "expected": "y", "score": 1}', "q.jsonl:1: score: Extra inputs are not permitted"),
        ("[" * 30_000, "q.jsonl:1: expected JSON such as"),
        (f"{LINE}\n" * 2_000, f"expected at most {MAX_BYTES} bytes"),
    ],
    ids=["absent", "empty", "no JSON", "no answer", "a field too many", "deep", "large"],
)
def test_a_bad_file_is_one_sentence(recipe: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (recipe.parent / "q.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(recipe), ["train.tasks=q.jsonl"])
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_text_from_elsewhere_opens_no_file() -> None:
    """A recipe that came to a cluster is complete; it must not make a pod read its own files."""
    with pytest.raises(ConfigError, match=r"train\.tasks: expected a list"):
        read_recipe(RECIPE, "the argument", ["train.tasks=/etc/passwd"])
