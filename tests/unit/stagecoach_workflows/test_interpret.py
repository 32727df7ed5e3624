"""What the runners execute, what means nothing to them, and that everything else is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.interpret import EXECUTED, WITHOUT_MEANING, duration_seconds, read_workflow, substitute
from stagecoach_workflows.render import template_document
from tests.unit.stagecoach_workflows.documents import container, document, task
from tests.unit.stagecoach_workflows.recipes import small_recipe


def simple() -> dict[str, Any]:
    return document([task("a"), task("b", after="a")], [container("a", "pass", retries=2), container("b", "pass")])


def test_the_built_workflow_is_understood() -> None:
    graph = read_workflow(template_document(small_recipe(), Deployment()))
    assert [found.name for found in graph.tasks][:2] == ["plan", "download-model"]
    assert graph.steps["pack"].command == ("python", "-m", "stagecoach_pack")
    assert graph.steps["plan"].outputs["decision-train"].default == "run"


def test_tasks_arguments_and_parameters_are_read() -> None:
    graph = read_workflow(simple())
    assert graph.parameters == {"word": "hello"}
    assert graph.tasks[1].depends == ("a",)
    assert graph.step_of(graph.tasks[0]).retry is not None


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (("spec",), "parallelism"),
        (("spec", "templates", 0), "sidecars"),
        (("spec", "templates", 0, "container"), "workingDir"),
        (("spec", "templates", 0, "retryStrategy"), "unknown"),
        (("spec", "templates", 0, "outputs"), "result"),
        (("spec", "templates", 2, "dag"), "failFast"),
        (("spec", "templates", 2, "dag", "tasks", 0), "withItems"),
    ],
)
def test_an_unknown_field_is_refused_by_name(path: tuple[str | int, ...], field: str) -> None:
    changed = copy.deepcopy(simple())
    target: Any = changed
    for part in path:
        target = target[part]
    target[field] = 1
    with pytest.raises(ConfigError, match=field):
        read_workflow(changed)


def test_a_multi_node_training_is_refused_by_its_field() -> None:
    recipe = small_recipe("train.nodes=2", "train.layout.data_parallel=2")
    with pytest.raises(ConfigError, match=r"template train: the field 'resource' cannot be executed"):
        read_workflow(template_document(recipe, Deployment()))


def test_no_field_is_on_two_lists() -> None:
    assert {kind: EXECUTED[kind] & fields for kind, fields in WITHOUT_MEANING.items() if EXECUTED[kind] & fields} == {}


def test_only_the_generated_retry_rule_is_recognised() -> None:
    changed = simple()
    changed["spec"]["templates"][0]["retryStrategy"]["expression"] = "true"
    with pytest.raises(ConfigError, match="template a: retryStrategy"):
        read_workflow(changed)


@pytest.mark.parametrize("when", ["{{x}} == run", "'{{x}}' != 'run'", "'{{x}}' == 'run' || true"])
def test_only_equality_is_a_condition(when: str) -> None:
    with pytest.raises(ConfigError, match="task a: when"):
        read_workflow(document([task("a", when=when)], [container("a", "pass")]))


@pytest.mark.parametrize("depends", ["a || b", "a.Failed", "!a"])
def test_only_and_is_a_dependency(depends: str) -> None:
    with pytest.raises(ConfigError, match="task b: depends"):
        read_workflow(document([task("a"), task("b", after=depends)], [container("a", "pass"), container("b", "pass")]))


@pytest.mark.parametrize("after", ["b", "nobody"])
def test_a_task_that_could_never_start_is_refused(after: str) -> None:
    with pytest.raises(ConfigError, match="never all end"):
        read_workflow(document([task("b", after=after)], [container("b", "pass")]))


def test_tags_are_replaced_once() -> None:
    """A value that looks like a tag stays text, so that no parameter can reach into another."""
    values = {"a": "{{b}}", "b": "secret"}
    assert substitute("x={{a}}", values, "test") == "x={{b}}"


def test_a_tag_without_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"workflow\.uid"):
        substitute("{{workflow.uid}}", {}, "test")


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("90s", 90), ("5m", 300), ("2h", 7200)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text, "test") == seconds
