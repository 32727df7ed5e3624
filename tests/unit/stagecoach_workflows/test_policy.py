"""Shapes, resources and the retry rule."""

from __future__ import annotations

import re

import pytest

from stagecoach.stages import TASKS
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.policy import (
    RETRY_EXIT_CODES,
    RETRY_EXPRESSION,
    Shape,
    argo_name,
    is_retryable,
    resources_of,
    task_policy,
)
from tests.unit.stagecoach_workflows.recipes import small_recipe

OUT_OF_MEMORY, EVICTED = re.findall(r"matches '([^']*)'", RETRY_EXPRESSION)


def evaluate(message: str, exit_code: str, status: str = "Failed") -> bool:
    """The expression as Argo's expr-lang evaluates it; ``matches`` searches, as Go's regexp does."""
    codes = [int(code) for code in re.findall(r"in \[([^]]*)\]", RETRY_EXPRESSION)[0].split(", ")]
    if re.search(OUT_OF_MEMORY, message):
        return False
    deleted = status == "Error" and int(exit_code) == -1
    return int(exit_code) in codes or deleted or bool(re.search(EVICTED, message))


@pytest.mark.parametrize("code", [69, 71, 75, 137, 143])
def test_what_may_help_is_tried_again(code: int) -> None:
    assert is_retryable(code)
    assert evaluate(f"main: Error (exit code {code})", str(code))


@pytest.mark.parametrize("code", [1, 2, 64, 65, 66, 70, 78, 79, 126, 139])
def test_what_is_permanent_is_not(code: int) -> None:
    assert not is_retryable(code)
    assert not evaluate(f"main: Error (exit code {code})", str(code))


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("pod deleted", "Error"),
        ("Pod was terminated in response to imminent node shutdown.", "Failed"),
        ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi.", "Failed"),
        ("Preempted in order to admit critical pod", "Failed"),
    ],
)
def test_a_pod_that_was_taken_away_is_tried_again_although_it_has_no_exit_code(message: str, status: str) -> None:
    assert evaluate(message, "-1", status)


def test_a_process_killed_for_its_memory_is_not_tried_again() -> None:
    assert not evaluate("main: OOMKilled (exit code 137)", "137")


def test_a_log_line_about_eviction_does_not_count() -> None:
    """The plan's message holds the end of its log; only a message that begins so is Argo's own."""
    assert not evaluate("main: Error (exit code 78): data.sources.0.name: Evicted", "78")


def test_the_expression_lists_the_table() -> None:
    assert f"in [{', '.join(map(str, RETRY_EXIT_CODES))}]" in RETRY_EXPRESSION


def test_a_result_field_leaves_the_shape_as_it_is() -> None:
    assert Shape.of(small_recipe("train.steps=99", "pack.pack_tokens=1024")) == Shape.of(small_recipe())


@pytest.mark.parametrize("setting", ["train.layout.tensor_parallel=2", "data.sources.0.name=b", "name=other"])
def test_a_field_that_the_template_depends_on_changes_it(setting: str) -> None:
    assert Shape.of(small_recipe(setting)) != Shape.of(small_recipe())


def test_argo_names_are_legal_and_differ() -> None:
    names = [argo_name(f"download-data-{source}") for source in ("a.b", "a_b", "a-b", "ab")]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)


def test_train_of_7b_on_four_gpus_has_room_for_a_checkpoint_in_memory() -> None:
    shape = Shape.of(small_recipe("train.gpus=4", "train.layout.tensor_parallel=4", model=_HUB_MODEL))
    asked = task_policy("train", shape).resources
    assert asked.gpus == 4
    assert asked.memory_gib >= 6 * 13.5 + 24  # fp32 masters and two moments are six times 16-bit weights
    assert asked.shared_memory_gib == 16


def test_a_small_model_asks_for_little_wherever_it_comes_from() -> None:
    model = {**_HUB_MODEL, "num_parameters": 134_515_008}
    asked = {task: task_policy(task, Shape.of(small_recipe(model=model))).resources for task in TASKS}
    assert asked["train"].memory_gib <= 10
    assert all(resources.memory_gib <= 1 for task, resources in asked.items() if task != "train")
    assert max(resources.scratch_gib for resources in asked.values()) <= 8


def test_the_pods_of_a_seed_model_are_sized_by_its_dimensions() -> None:
    assert (
        Shape.of(small_recipe("model.source.hidden_size=512")).num_parameters > Shape.of(small_recipe()).num_parameters
    )


def test_a_deployment_changes_single_resources() -> None:
    policy = task_policy("pack", Shape.of(small_recipe()))
    deployment = Deployment.model_validate({"resources": {"pack": {"memory_gib": 3}}})
    changed = resources_of(policy, "pack", deployment).resources
    assert (changed.memory_gib, changed.cpu) == (3, policy.resources.cpu)


_HUB_MODEL = {"name": "m", "source": {"kind": "hub", "repo": "owner/name"}}
