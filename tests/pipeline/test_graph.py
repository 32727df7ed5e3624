"""The built workflow is the table of tasks: nothing runs too early, nothing is left out, everything can be skipped."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.stages import TASKS
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.graph import task_nodes
from stagecoach_workflows.policy import argo_name
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.render import template_document

TWO_SOURCES = ["a", "b_c.d"]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The spec of a workflow with two data sources."""
    recipe = load_recipe("micro")
    source = recipe.data.sources[0]
    sources = tuple(source.model_copy(update={"name": name}) for name in TWO_SOURCES)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": sources})})
    built: dict[str, Any] = template_document(recipe, Deployment())["spec"]
    return built


def dag(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (found,) = (template["dag"]["tasks"] for template in spec["templates"] if "dag" in template)
    return {task["name"]: task for task in found}


def test_the_dag_has_the_tables_tasks_and_the_plan(spec: dict[str, Any]) -> None:
    assert list(dag(spec)) == ["plan", *(argo_name(task) for task in task_nodes(TWO_SOURCES))]


@pytest.mark.parametrize("task", list(task_nodes(TWO_SOURCES)))
def test_a_task_waits_for_exactly_what_it_reads(spec: dict[str, Any], task: str) -> None:
    waits_for = set(dag(spec)[argo_name(task)]["depends"].split(" && "))
    reads = {argo_name(other) for other in task_nodes(TWO_SOURCES)[task].reads.values()}
    assert waits_for == (reads or {"plan"})


def test_every_stage_of_the_table_runs_its_own_package_in_its_own_image(spec: dict[str, Any]) -> None:
    containers = {template["name"]: template["container"] for template in spec["templates"] if "container" in template}
    for task, node in task_nodes(TWO_SOURCES).items():
        container = containers[argo_name(task)]
        assert container["command"] == ["python", "-m", f"stagecoach_{node.kind.stage}"]
        assert f"/stagecoach-{node.kind.stage}:" in container["image"]


def test_every_task_can_be_skipped_by_the_plan(spec: dict[str, Any]) -> None:
    plan = next(template for template in spec["templates"] if template["name"] == "plan")
    outputs = {output["name"]: output["valueFrom"]["default"] for output in plan["outputs"]["parameters"]}
    for name, task in dag(spec).items():
        if name != "plan":
            assert task["when"] == f"'{{{{tasks.plan.outputs.parameters.decision-{name}}}}}' == 'run'"
            assert outputs[f"decision-{name}"] == "run"


def test_the_plans_own_task_name_reaches_the_stage(spec: dict[str, Any]) -> None:
    """Argo's names are escaped; the stage must get the name that the plan knows."""
    arguments = dag(spec)["download-data-b-x5f-c-x2e-d"]["arguments"]["parameters"]
    assert {"name": "task", "value": "download-data-b_c.d"} in arguments


def test_the_two_arms_meet_in_train(spec: dict[str, Any]) -> None:
    tasks = dag(spec)

    def ancestors(name: str) -> set[str]:
        parents = set(tasks[name].get("depends", "").split(" && ")) - {""}
        return parents.union(*(ancestors(parent) for parent in parents)) if parents else set()

    assert "pack" not in ancestors("shard")
    assert "convert" not in ancestors("pack")
    assert {"shard", "pack"} <= ancestors("train")


def test_the_table_has_the_kinds_that_the_pipeline_names() -> None:
    assert list(TASKS) == [
        "download-model",
        "download-tokenizer",
        "download-data",
        "convert",
        "shard",
        "pack",
        "train",
        "export",
    ]
