"""The committed YAML is what the code renders today. CI never writes it; ``make render`` does, on request."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import stagecoach_workflows
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.recipes_shipped import load_recipe, shipped_names
from stagecoach_workflows.render import template_document, to_yaml

RENDERED = Path(stagecoach_workflows.__path__[0]) / "rendered"
TWO_NODES = Path(__file__).parents[1] / "golden/argo/mistral-7b-2x4xa100.yaml"


@pytest.mark.parametrize("name", shipped_names())
def test_the_rendered_template_is_up_to_date(name: str) -> None:
    file = RENDERED / f"{name}.yaml"
    assert file.is_file(), "run `make render` and commit what it writes"
    (committed,) = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    assert committed == template_document(load_recipe(name), Deployment()), "run `make render` and look at the diff"


def test_nothing_is_rendered_that_is_not_shipped() -> None:
    assert sorted(file.stem for file in RENDERED.glob("*.yaml")) == shipped_names()


def test_a_training_on_two_nodes_is_rendered_as_committed(request: pytest.FixtureRequest) -> None:
    """No shipped recipe needs two nodes, so the JobSet in its resource template would be seen by nobody."""
    layout = ("train.layout.tensor_parallel=4", "train.layout.data_parallel=2")
    recipe = load_recipe("mistral-7b-4xa100", ("train.nodes=2", "train.gpus=4", *layout))
    document = template_document(recipe, Deployment())
    if request.config.getoption("--regenerate"):
        TWO_NODES.parent.mkdir(exist_ok=True)
        TWO_NODES.write_text(to_yaml([document]), encoding="utf-8")
    assert yaml.safe_load(TWO_NODES.read_text(encoding="utf-8")) == document


def test_what_happens_at_the_exit_happens_whatever_else_fails() -> None:
    """Argo starts nothing more in a DAG of which a task failed, unless it is told to; message and JobSet are apart."""
    recipe = load_recipe("mistral-7b-4xa100", ("train.nodes=2", "train.gpus=4", "train.layout.data_parallel=2"))
    document = template_document(recipe, Deployment())
    (at_exit,) = (
        each for each in document["spec"]["templates"] if each["name"] == document["spec"]["hooks"]["exit"]["template"]
    )
    assert len(at_exit["dag"]["tasks"]) == 2
    assert at_exit["dag"]["failFast"] is False
    assert not any("dependencies" in task or "depends" in task for task in at_exit["dag"]["tasks"])
