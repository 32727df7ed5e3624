"""Workflow documents of a few tasks, as ``to_dict()`` would give them, for tests of the runners."""

from __future__ import annotations

from typing import Any

from stagecoach_workflows.policy import RETRY_EXPRESSION


def container(name: str, script: str, *, outputs: tuple[str, ...] = (), retries: int | None = None) -> dict[str, Any]:
    """A template whose step runs a Python script; outputs are files on its artifacts volume."""
    template: dict[str, Any] = {
        "name": name,
        "container": {
            "image": f"image-{name}",
            "command": ["python", "-c"],
            "args": [script, "{{workflow.parameters.word}}"],
            "env": [{"name": "STAGECOACH_ARTIFACTS", "value": "/work/artifacts"}],
            "volumeMounts": [{"name": "artifacts", "mountPath": "/work/artifacts"}],
        },
        "outputs": {
            "parameters": [
                {"name": output, "valueFrom": {"path": f"/work/artifacts/{output}", "default": "run"}}
                for output in outputs
            ]
        },
    }
    if retries is not None:
        template["retryStrategy"] = {
            "limit": str(retries),
            "retryPolicy": "Always",
            "expression": RETRY_EXPRESSION,
            "backoff": {"duration": "0", "factor": 2, "cap": "5m"},
        }
    return template


def task(name: str, *, after: str = "", when: str | None = None) -> dict[str, Any]:
    """A task of the DAG that runs the template of its own name."""
    made: dict[str, Any] = {"name": name, "template": name}
    if after:
        made["depends"] = after
    if when is not None:
        made["when"] = when
    return made


def document(tasks: list[dict[str, Any]], templates: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole workflow template."""
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": "test"},
        "spec": {
            "entrypoint": "main",
            "arguments": {"parameters": [{"name": "word", "value": "hello"}]},
            "templates": [*templates, {"name": "main", "dag": {"tasks": tasks}}],
        },
    }
