"""Recipe files: every mistake is said with file, line and field, all at once."""

import pytest

from stagecoach.errors import ConfigError
from stagecoach.recipe.load import read_recipe, recipe_json

RECIPE = """\
name: small
model:
  name: tiny
  source: {kind: seed}
data:
  name: demo
  sources:
    - name: demo
      source: {kind: embedded}
pack:
  pack_tokens: 512
  too_long: error
train:
  lr: 1e-3
  layout: {tensor_parallel: 2}
"""


def _problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_recipe(text, "r.yaml", overrides)
    return str(caught.value).splitlines()


def test_a_number_in_yaml_1_2_form_is_a_number() -> None:
    assert read_recipe(RECIPE, "r.yaml").train.lr == 1e-3


def test_shard_takes_trains_layout() -> None:
    assert read_recipe(RECIPE, "r.yaml").shard.tensor_parallel == 2


def test_a_recipe_survives_its_canonical_json() -> None:
    recipe = read_recipe(RECIPE, "r.yaml")
    assert read_recipe(recipe_json(recipe), "plan") == recipe


def test_an_override_is_laid_over_the_file() -> None:
    recipe = read_recipe(
        RECIPE, "r.yaml", ["train.seed=7", "data.sources.0.weight=2", "train.layout.tensor_parallel=4"]
    )
    assert (recipe.train.seed, recipe.data.sources[0].weight, recipe.train.layout.tensor_parallel) == (
        7,
        2.0,
        4,
    )


def test_an_unknown_field_is_named_with_its_line_and_a_suggestion() -> None:
    assert _problems(RECIPE.replace("pack_tokens: 512", "pack_tokens: 512\n  pack_token: 1")) == [
        "r.yaml:12: pack.pack_token: unknown field; did you mean 'pack_tokens'?"
    ]


def test_all_mistakes_are_said_at_once() -> None:
    text = RECIPE.replace("512", "many").replace("too_long: error", "too_long: cut")
    assert [line.split(":")[1] for line in _problems(text)] == ["11", "12"]


def test_a_missing_section_is_named() -> None:
    assert _problems("name: small\n")[0].startswith("r.yaml:1: model: missing")


def test_a_field_given_twice_is_refused() -> None:
    assert _problems(RECIPE + "name: again\n") == ["r.yaml:16: name: given twice"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected a mapping with the sections"),
        ("- a\n", "expected a mapping with the sections"),
        ("name: [", "r.yaml:1: not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("x" * 2_000_000, "at most 1 MiB"),
        ("a: &a [1]\nb: [*a, *a]", "r.yaml:2: not valid YAML: aliases"),
        ("[" * 10000, "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    assert sentence in _problems(text)[0]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.sed=1", "--set train.sed: there is no field 'sed'; did you mean 'seed'?"),
        ("trian.seed=1", "--set trian.seed: there is no field 'trian'; did you mean 'train'?"),
        ("train.seed", "--set train.seed: expected PATH=VALUE"),
        ("train.seed=x", "--set train.seed: train.seed: "),
        ("data.sources.3.weight=2", "--set data.sources.3.weight: "),
        ("train.seed=[", "--set train.seed: not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_by_its_path(override: str, sentence: str) -> None:
    assert _problems(RECIPE, override)[0].startswith(sentence)
