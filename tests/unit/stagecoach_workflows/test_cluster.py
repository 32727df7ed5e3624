"""What is read from a workflow object, and how the cluster's refusals become Stagecoach's errors."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from stagecoach.errors import ConfigError, MissingInputError, UnavailableError
from stagecoach_workflows.cluster import Cluster, workflow_state
from stagecoach_workflows.workflow_state import WorkflowState


def node(name: str, kind: str, phase: str, *children: str, **more: Any) -> dict[str, Any]:
    return {"displayName": name, "type": kind, "phase": phase, "children": list(children), **more}


def workflow(phase: str, nodes: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "wf", "labels": {"stagecoach/run": "20261125t013000z-small-ab12"}},
        "status": {"phase": phase, "nodes": nodes, "startedAt": "2026-11-25T01:30:00Z"},
    }


RETRIED = {
    "wf": node("wf", "DAG", "Failed", "wf-1"),
    "wf-1": node(
        "train", "Retry", "Failed", "wf-2", "wf-3", startedAt="2026-11-25T01:31:00Z", finishedAt="2026-11-25T01:40:00Z"
    ),
    "wf-2": node("train(0)", "Pod", "Error", message="pod deleted", outputs={"exitCode": "-1"}),
    "wf-3": node("train(1)", "Pod", "Failed", message="main: Error (exit code 79)", outputs={"exitCode": "79"}),
    "wf-4": node("convert", "Skipped", "Skipped", startedAt="2026-11-25T01:30:30Z"),
}


def test_the_attempts_of_a_task_are_one_row() -> None:
    convert, train = workflow_state(workflow("Failed", RETRIED)).nodes
    assert (convert.task, convert.phase, convert.node_id) == ("convert", "Skipped", None)
    assert (train.task, train.attempts, train.exit_code, train.node_id) == ("train", 2, 79, "wf-3")
    assert train.message == "main: Error (exit code 79)"


def test_the_exit_code_of_a_run_is_the_failed_tasks() -> None:
    assert workflow_state(workflow("Failed", RETRIED)).exit_code == 79
    assert workflow_state(workflow("Succeeded", {})).exit_code == 0


def test_a_run_that_failed_without_an_exit_code_is_70() -> None:
    deleted = {"wf-1": node("pack", "Pod", "Error", message="pod deleted", outputs={"exitCode": "-1"})}
    assert workflow_state(workflow("Error", deleted)).exit_code == 70


def test_a_stopped_run_has_the_exit_code_of_its_last_attempt() -> None:
    """Argo stops looking at a workflow that it was told to stop: the Retry node is then left as Running for good."""
    stopped = {
        "wf-1": node("train", "Retry", "Running", "wf-2", startedAt="2026-11-25T01:31:00Z", finishedAt=None),
        "wf-2": node(
            "train(0)", "Pod", "Failed", message="saved", finishedAt="2026-11-25T01:40:00Z", outputs={"exitCode": "75"}
        ),
    }
    state = workflow_state(workflow("Failed", stopped))
    (train,) = state.nodes
    assert (train.phase, train.finished, state.exit_code) == ("Failed", "2026-11-25T01:40:00Z", 75)
    (train,) = workflow_state(workflow("Running", stopped)).nodes
    assert train.phase == "Running"


def test_progress_is_a_share() -> None:
    state = workflow_state(workflow("Running", {"wf-1": node("train", "Pod", "Running", progress="250/1000")}))
    assert (state.ended, state.nodes[0].progress) == (False, 0.25)


def test_nodes_that_argo_compressed_are_read() -> None:
    document = workflow("Running", {})
    packed = gzip.compress(json.dumps({"wf-1": node("pack", "Pod", "Running")}).encode())
    document["status"] |= {"compressedNodes": base64.b64encode(packed).decode(), "nodes": {}}
    assert [found.task for found in workflow_state(document).nodes] == ["pack"]


def test_the_exit_hook_has_a_name_of_its_own() -> None:
    state = workflow_state(workflow("Running", {"wf-1": node("wf.onExit", "Pod", "Running")}))
    assert [found.task for found in state.nodes] == ["exit-hook"]


def test_a_workflow_that_argo_has_not_seen_yet_is_pending() -> None:
    state = workflow_state({"metadata": {"name": "wf"}})
    assert (state.phase, state.ended, state.nodes) == ("Pending", False, ())


def refuse(status: int, message: str) -> None:
    error = ApiException(status=status, reason="reason")
    error.body = json.dumps({"message": message})
    raise error


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, ConfigError),
        (422, ConfigError),
        (404, MissingInputError),
        (503, UnavailableError),
        (429, UnavailableError),
    ],
)
def test_a_refusal_says_what_and_why(status: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"Workflow wf.*because of x"):
        Cluster._call("Workflow wf", lambda: refuse(status, "because of x"))


def test_a_cluster_that_does_not_answer_is_worth_a_retry() -> None:
    def fail() -> None:
        raise ConnectionRefusedError(111, "refused")

    with pytest.raises(UnavailableError, match="does not answer"):
        Cluster._call("Workflow wf", fail)


class SlowCache:
    """The part of the API that ``submit`` uses, of a cluster whose Argo knows a new template a while late."""

    def __init__(self, too_early: int, message: str) -> None:
        self.workflows: list[dict[str, Any]] = []
        self.too_early, self.message = too_early, message

    def create_namespaced_custom_object(self, *place: str | dict[str, Any]) -> dict[str, Any]:
        early = len(self.workflows) < self.too_early
        metadata = {"name": f"wf-{len(self.workflows)}", "labels": {"stagecoach/run": "run"}}
        status = {"phase": "Error", "message": self.message} if early else {"phase": "Running"}
        self.workflows.append({"metadata": metadata, "status": status})
        return self.workflows[-1]

    def get_namespaced_custom_object(self, *place: str) -> dict[str, Any]:
        return next(workflow for workflow in self.workflows if workflow["metadata"]["name"] == place[-1])

    def patch_namespaced_custom_object(self, *place: Any) -> None:
        self.get_namespaced_custom_object(*place[:-1])["metadata"] |= place[-1]["metadata"]


def cluster_with(api: SlowCache) -> Cluster:
    cluster = Cluster.__new__(Cluster)
    cluster.namespace, cluster._custom = "ml", api
    return cluster


NOT_FOUND = 'workflowtemplates.argoproj.io "stagecoach-small-1" not found'
WORKFLOW = {"kind": "Workflow", "metadata": {}, "spec": {"workflowTemplateRef": {"name": "stagecoach-small-1"}}}


def test_a_run_that_argo_gave_up_before_its_new_template_arrived_is_made_again() -> None:
    api = SlowCache(2, NOT_FOUND)
    assert cluster_with(api).submit(WORKFLOW, new_template=True) == "wf-2"
    assert [w["metadata"]["labels"]["stagecoach/run"] for w in api.workflows] == [None, None, "run"]


def test_a_run_that_nobody_may_look_at_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists: without its name people would submit it once more."""
    cluster = cluster_with(SlowCache(0, ""))

    def state(name: str) -> WorkflowState:
        raise UnavailableError("Kubernetes does not answer")

    monkeypatch.setattr(cluster, "state", state)
    assert cluster.submit(WORKFLOW, new_template=True) == "wf-0"


@pytest.mark.parametrize(("new_template", "message"), [(False, NOT_FOUND), (True, "parameter x is missing")])
def test_any_other_error_is_the_runs_own(new_template: bool, message: str) -> None:
    api = SlowCache(1, message)
    assert cluster_with(api).submit(WORKFLOW, new_template=new_template) == "wf-0"
    assert len(api.workflows) == 1
