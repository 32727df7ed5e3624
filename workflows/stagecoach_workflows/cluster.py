"""Talks to a cluster through the Kubernetes API alone: no Argo server, no ``argo`` program.

This is the only module that knows the Kubernetes client; what it returns is plain data.
"""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from stagecoach.errors import ConfigError, MissingInputError, StagecoachError, UnavailableError
from stagecoach_workflows.workflow_state import ENDED, NodeState, WorkflowState

_GROUP, _VERSION = "argoproj.io", "v1alpha1"
_RUN_LABEL = "stagecoach/run"
_WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
_NODE_ANNOTATION = "workflows.argoproj.io/node-id"
_ARGO_LINE = " argo=true"  # the mark by which Argo's own client leaves these lines out
_EXIT_HOOK = ".onExit"
_POLL_SECONDS = 0.5
_FIRST_LOOK_SECONDS = 15.0
_TEMPLATE_SECONDS = 60.0
_Result = TypeVar("_Result")
_config: Any = config  # its functions carry no types


class Cluster:
    """One namespace of the cluster that KUBECONFIG, or the pod's own account, gives access to."""

    def __init__(self, namespace: str = "") -> None:
        """Find the cluster.

        Args:
            namespace: Empty takes the context's own, or the pod's.

        Raises:
            ConfigError: There is no cluster configuration.
        """
        try:
            _config.load_kube_config()
            _, context = _config.list_kube_config_contexts()
            own = context["context"].get("namespace", "default")
        except config.ConfigException:
            own = _load_in_cluster()
        self.namespace: str = namespace or own
        self._custom: Any = client.CustomObjectsApi()
        self._core: Any = client.CoreV1Api()
        self._authorization: Any = client.AuthorizationV1Api()

    def ensure_template(self, document: Mapping[str, Any]) -> bool:
        """Create a WorkflowTemplate that is named after its content; False if it is there already."""
        return self._create("workflowtemplates", document) is not None

    def submit(self, document: Mapping[str, Any], *, new_template: bool = False) -> str:
        """Create a Workflow and return the name that it got.

        Args:
            document: It refers to a template.
            new_template: That was made just now. Argo reads templates from a cache of its own; a workflow that it
                looks at before its template has arrived there ends as an error, and is then made once more.
        """
        template = document["spec"]["workflowTemplateRef"]["name"]
        end = time.monotonic() + _TEMPLATE_SECONDS
        while True:
            created = self._create("workflows", document)
            if created is None:
                raise ConfigError(f"Workflow {document['metadata'].get('name')}: exists already in {self.namespace}")
            name = str(created["metadata"]["name"])
            if not new_template or time.monotonic() > end or not self._came_before(name, template):
                return name
            self._disown(name)

    def find(self, run: str) -> str:
        """Return the name of a run's workflow, given that name or the run id.

        Raises:
            MissingInputError: There is no such workflow.
        """
        found = self._call(
            f"runs in {self.namespace}",
            lambda: self._custom.list_namespaced_custom_object(
                _GROUP, _VERSION, self.namespace, "workflows", label_selector=f"{_RUN_LABEL}={run.lower()}"
            ),
        )
        names = [str(item["metadata"]["name"]) for item in found["items"]]
        return names[-1] if names else self.state(run).name

    def state(self, name: str) -> WorkflowState:
        """Return how a workflow is doing.

        Raises:
            MissingInputError: There is no such workflow.
        """
        return workflow_state(
            self._call(
                f"Workflow {name} in {self.namespace}",
                lambda: self._custom.get_namespaced_custom_object(_GROUP, _VERSION, self.namespace, "workflows", name),
            )
        )

    def pods(self, name: str) -> dict[str, str]:
        """Return the pods of a workflow that are still there: Argo's node id -> pod name."""
        found = self._call(
            f"pods of workflow {name}",
            lambda: self._core.list_namespaced_pod(self.namespace, label_selector=f"{_WORKFLOW_LABEL}={name}"),
        )
        return {(pod.metadata.annotations or {}).get(_NODE_ANNOTATION, ""): pod.metadata.name for pod in found.items}

    def logs(self, pod: str, *, follow: bool = False, tail_lines: int | None = None) -> Iterator[str]:
        """Yield the lines of a pod's main container, without those of Argo's own executor.

        Raises:
            MissingInputError: The pod is gone.
        """
        options: dict[str, Any] = {"container": "main", "follow": follow, "_preload_content": False}
        if tail_lines is not None:
            options["tail_lines"] = tail_lines
        response = self._call(
            f"log of pod {pod}", lambda: self._core.read_namespaced_pod_log(pod, self.namespace, **options)
        )
        for data in response:
            line = data.decode("utf-8", "replace").rstrip("\n")
            if _ARGO_LINE not in line:
                yield line

    def stop(self, name: str, *, at_once: bool = False) -> None:
        """End a workflow: its pods get SIGTERM, so that train saves; at once leaves out the exit hook as well."""
        self._patch(name, {"spec": {"shutdown": "Terminate" if at_once else "Stop"}})

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Say whether this account may do ``verb`` on ``resource`` in the namespace."""
        attributes = client.V1ResourceAttributes(namespace=self.namespace, verb=verb, resource=resource, group=group)
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        answer = self._call("access review", lambda: self._authorization.create_self_subject_access_review(review))
        return bool(answer.status.allowed)

    def gpu_nodes(self, resource: str) -> dict[str, int]:
        """Return the nodes that offer a resource, and how much of it."""
        nodes = self._call("nodes", self._core.list_node).items
        offers = {node.metadata.name: int((node.status.allocatable or {}).get(resource, 0)) for node in nodes}
        return {name: number for name, number in offers.items() if number}

    def _came_before(self, name: str, template: str) -> bool:
        """Whether Argo gave a workflow up for want of its template; waits until it looked at it, but not for long."""
        end = time.monotonic() + _FIRST_LOOK_SECONDS
        try:
            while (state := self.state(name)).phase == "Pending" and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        except (MissingInputError, UnavailableError, ConfigError):
            # The run exists: who submitted must get its name, even if nobody may look at it, or not now.
            return False
        return state.phase == "Error" and f'"{template}" not found' in state.message

    def _disown(self, name: str) -> None:
        """Take the run from a workflow that never began, and let Argo remove it."""
        self._patch(
            name, {"metadata": {"labels": {_RUN_LABEL: None}}, "spec": {"ttlStrategy": {"secondsAfterCompletion": 60}}}
        )

    def _patch(self, name: str, body: Mapping[str, Any]) -> None:
        self._call(
            f"Workflow {name} in {self.namespace}",
            lambda: self._custom.patch_namespaced_custom_object(
                _GROUP, _VERSION, self.namespace, "workflows", name, dict(body)
            ),
        )

    def _create(self, plural: str, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
        kind, metadata = document["kind"], document["metadata"]
        try:
            created: Mapping[str, Any] = self._call(
                f"{kind} {metadata.get('name') or metadata.get('generateName')} in {self.namespace}",
                lambda: self._custom.create_namespaced_custom_object(
                    _GROUP, _VERSION, self.namespace, plural, dict(document)
                ),
            )
        except _ExistsError:
            return None
        return created

    @staticmethod
    def _call(what: str, request: Callable[[], _Result]) -> _Result:
        try:
            return request()
        except ApiException as error:
            raise _translated(what, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(
                f"{what}: the cluster does not answer ({type(error).__name__}); try again"
            ) from error


class _ExistsError(StagecoachError):
    """An object of that name is there already."""


def workflow_state(document: Mapping[str, Any]) -> WorkflowState:
    """Return the state of a workflow object."""
    status = document.get("status") or {}
    metadata = document["metadata"]
    return WorkflowState(
        name=metadata["name"],
        run_id=metadata.get("labels", {}).get(_RUN_LABEL, ""),
        phase=status.get("phase", "Pending"),
        message=status.get("message", ""),
        started=status.get("startedAt") or "",
        finished=status.get("finishedAt") or "",
        nodes=tuple(_tasks(_nodes(status), ended=status.get("phase") in ENDED)),
    )


def run_label(run_id: str) -> dict[str, str]:
    """Return the label by which a run's workflow is found."""
    return {_RUN_LABEL: run_id.lower()}


def _nodes(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes; of a large workflow Argo keeps them as gzip in base64."""
    compressed = status.get("compressedNodes")
    if compressed:
        nodes: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(compressed)))
        return nodes
    return dict(status.get("nodes") or {})


def _tasks(nodes: Mapping[str, Any], *, ended: bool) -> Iterator[NodeState]:
    """Yield the tasks of the DAG in order of their start; a Retry node stands for all its attempts.

    Argo leaves the Retry node of a stopped workflow as Running for good; of one that ended, the last attempt counts.
    """
    attempts = {child for node in nodes.values() if node.get("type") == "Retry" for child in node.get("children", ())}
    for node_id, node in sorted(
        nodes.items(), key=lambda item: (item[1].get("startedAt") or "~", item[1]["displayName"])
    ):
        if node_id in attempts or node.get("type") not in ("Pod", "Retry", "Skipped"):
            continue
        children = (
            [nodes[child] for child in node.get("children", ()) if child in nodes] if node["type"] == "Retry" else []
        )
        last = children[-1] if children else node
        done, _, total = str(last.get("progress", "")).partition("/")
        code = (last.get("outputs") or {}).get("exitCode")
        whole = last if ended and node.get("phase") not in ENDED else node
        last_id = next(child for child in reversed(node["children"]) if child in nodes) if children else node_id
        yield NodeState(
            task="exit-hook" if node["displayName"].endswith(_EXIT_HOOK) else node["displayName"],
            phase=whole.get("phase", "Pending"),
            progress=int(done) / int(total) if done.isdecimal() and total.isdecimal() and int(total) else 0.0,
            attempts=max(1, len(children)),
            started=node.get("startedAt") or "",
            finished=whole.get("finishedAt") or "",
            message=last.get("message") or node.get("message") or "",
            exit_code=int(code) if code is not None and str(code).lstrip("-").isdecimal() else None,
            node_id=last_id if last.get("type") == "Pod" else None,
        )


def _translated(what: str, error: ApiException) -> StagecoachError:
    try:
        sentence = json.loads(error.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        sentence = error.reason or "no reason given"
    if error.status == 404:
        return MissingInputError(f"{what}: not found; check the name and the namespace ({sentence})")
    if error.status == 409:
        return _ExistsError(f"{what}: exists already")
    if error.status is None or error.status >= 500 or error.status == 429:
        return UnavailableError(f"{what}: the cluster does not answer: {sentence}; try again")
    return ConfigError(f"{what}: refused by the cluster: {sentence}")


def _load_in_cluster() -> str:
    try:
        _config.load_incluster_config()
    except config.ConfigException as error:
        raise ConfigError(
            "cluster: expected a KUBECONFIG, ~/.kube/config or a pod's own account, found none; see `kubectl config`"
        ) from error
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as stream:
        return stream.read().strip()
