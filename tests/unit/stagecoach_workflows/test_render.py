"""Names, aliases, schedules and submissions, and what a template carries."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml

from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.plan import decode_recipe
from stagecoach_workflows.render import (
    alias_document,
    alias_name,
    cron_document,
    template_document,
    to_yaml,
    workflow_document,
)
from tests.unit.stagecoach_workflows.recipes import small_recipe


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return template_document(small_recipe(), Deployment())


def test_the_name_is_the_recipes_and_a_digest_of_everything_in_it(template: dict[str, Any]) -> None:
    name = template["metadata"]["name"]
    assert name.startswith("stagecoach-small-")
    assert len(name) == len("stagecoach-small-") + 10
    assert template_document(small_recipe(), Deployment())["metadata"]["name"] == name
    for other in (
        template_document(small_recipe("train.seed=7"), Deployment()),
        template_document(small_recipe(), Deployment(tag="0.2.0")),
    ):
        assert other["metadata"]["name"] != name


def test_a_workflow_of_the_longest_recipe_name_still_has_a_legal_name() -> None:
    """Kubernetes adds five random characters, and the whole must fit into a label of 63."""
    document = template_document(small_recipe("name=" + "a" * 63), Deployment())
    assert len(document["metadata"]["name"]) + len("-x7k2p") <= 63
    assert len(alias_name(small_recipe("name=" + "a" * 63))) <= 52  # what a CronWorkflow may have


def test_the_recipe_is_a_parameters_default(template: dict[str, Any]) -> None:
    parameters = {item["name"]: item["value"] for item in template["spec"]["arguments"]["parameters"]}
    assert decode_recipe(parameters["recipe"]) == small_recipe()
    assert parameters["store"] == "s3://stagecoach"
    assert base64.b64decode(parameters["recipe"]).startswith(b'{"convert":')


def test_the_alias_has_the_same_content_and_says_whose_it_is(template: dict[str, Any]) -> None:
    alias = alias_document(template, small_recipe())
    assert alias["metadata"]["name"] == "stagecoach-small"
    assert alias["metadata"]["annotations"]["stagecoach/template"] == template["metadata"]["name"]
    assert alias["spec"] == template["spec"]


def test_a_submission_says_only_what_strict_mode_allows() -> None:
    document = workflow_document("stagecoach-small-0123456789", parameters={"run": "r"}, labels={"stagecoach/run": "r"})
    assert set(document["spec"]) <= {"workflowTemplateRef", "arguments", "entrypoint", "priority", "shutdown"}
    assert document["metadata"]["generateName"] == "stagecoach-small-0123456789-"


def test_a_schedule_is_in_utc_and_never_runs_twice_at_once() -> None:
    spec = cron_document(small_recipe(), ["30 1 * * *"], {})["spec"]
    assert (spec["schedules"], spec["timezone"], spec["concurrencyPolicy"]) == (["30 1 * * *"], "Etc/UTC", "Forbid")
    assert spec["workflowSpec"]["workflowTemplateRef"] == {"name": "stagecoach-small"}


def test_yaml_reads_back_as_it_was(template: dict[str, Any]) -> None:
    assert list(yaml.safe_load_all(to_yaml([template, template]))) == [template, template]


@pytest.mark.parametrize(
    "hostile",
    [
        "{{workflow.parameters.store}}",
        "{{=sprig.env('HOME')}}",
        "a: b\n- c",
        "$(touch /tmp/x)",
        "'; reboot; '",
        "\u2028",
    ],
)
def test_a_hostile_description_reaches_nothing_but_its_annotation(hostile: str) -> None:
    """Not a tag, a command or YAML anywhere else: the recipe itself travels as base64."""
    plain = template_document(small_recipe(description="plain"), Deployment())
    document = template_document(small_recipe(description=hostile), Deployment())
    (read,) = yaml.safe_load_all(to_yaml([document]))
    assert read["metadata"]["annotations"]["workflows.argoproj.io/description"] == hostile
    for one in (read, plain):
        one["spec"]["arguments"] = None
    assert read["spec"] == plain["spec"]
