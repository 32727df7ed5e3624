"""Turns a recipe into the documents that a cluster gets: a WorkflowTemplate, its alias, a CronWorkflow, a Workflow.

A template is called ``stagecoach-<recipe>-<digest>`` after everything in it and is never changed; the alias
``stagecoach-<recipe>`` has the same content and moves to the newest one, so that people and schedules can name it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from stagecoach.keys import canonical_json
from stagecoach.recipe.load import recipe_json
from stagecoach.recipe.recipe import Recipe
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.policy import Shape
from stagecoach_workflows.run_ids import slug

API_VERSION = "argoproj.io/v1alpha1"
_MAX_RECIPE_NAME = 34  # stagecoach-<34>-<10> leaves room for the six characters of a workflow's own name, 63 in all
_DIGEST_DIGITS = 10


def template_document(recipe: Recipe, deployment: Deployment) -> dict[str, Any]:
    """Return the recipe's WorkflowTemplate, named after its content.

    Raises:
        ConfigError: The recipe cannot be a workflow.
    """
    from stagecoach_workflows.pipeline import build

    recipe_base64 = base64.b64encode(recipe_json(recipe).encode("ascii")).decode("ascii")
    document: dict[str, Any] = build(Shape.of(recipe), recipe_base64, deployment, alias_name(recipe)).to_dict()
    digest = hashlib.sha256(canonical_json(document["spec"]).encode("ascii")).hexdigest()[:_DIGEST_DIGITS]
    document["metadata"]["name"] = f"{alias_name(recipe)}-{digest}"
    return document


def alias_name(recipe: Recipe) -> str:
    """Return the name under which the newest template of this recipe is found."""
    return f"stagecoach-{slug(recipe.name, _MAX_RECIPE_NAME)}"


def alias_document(template: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the alias of a template: the same content under the name without the digest."""
    metadata = dict(template["metadata"])
    annotations = {**metadata["annotations"], "stagecoach/template": metadata["name"]}
    return {**template, "metadata": {**metadata, "name": alias_name(recipe), "annotations": annotations}}


def workflow_document(
    template_name: str, *, parameters: Mapping[str, str], labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a Workflow that runs a template once; it says only what Argo's ``Strict`` mode allows."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Workflow",
        "metadata": {"generateName": f"{template_name}-", **({"labels": dict(labels)} if labels else {})},
        "spec": _reference(template_name, parameters),
    }


def cron_document(recipe: Recipe, schedules: Sequence[str], parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return a CronWorkflow on the recipe's alias: in UTC, never two at once, missed ones not made up for.

    The workflow's name carries the time it was due, from which the plan makes the run id.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "CronWorkflow",
        "metadata": {"name": alias_name(recipe), "labels": {"app.kubernetes.io/part-of": "stagecoach"}},
        "spec": {
            "schedules": list(schedules),
            "timezone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "successfulJobsHistoryLimit": 7,
            "failedJobsHistoryLimit": 7,
            "workflowSpec": _reference(alias_name(recipe), parameters),
        },
    }


def to_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as YAML, long texts on one line each, in the order in which they were built."""
    text: str = yaml.safe_dump_all(
        [dict(document) for document in documents],
        sort_keys=False,
        width=2**31,
        default_flow_style=False,
        allow_unicode=True,
    )
    return text


def _reference(template_name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    spec: dict[str, Any] = {"workflowTemplateRef": {"name": template_name}}
    if parameters:
        values = [{"name": name, "value": value} for name, value in parameters.items()]
        spec["arguments"] = {"parameters": values}
    return spec
