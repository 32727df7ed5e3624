"""A training on several nodes as a JobSet, which Argo applies and watches through a resource template.

The JobSet is named after the training's key: a retry of the watching pod applies the same object, and so finds the
training that is going on. Pods restart by exit code as in the workflow; each attempt goes on from the last checkpoint.
When the run ends, also by `stagecoach cancel`, its exit hook deletes the JobSet that carries its label.
"""

from __future__ import annotations

from typing import Any

import yaml

from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.pod import (
    ARTIFACTS_PATH,
    SCRATCH_PATH,
    container_security,
    environment_sources,
    gib,
    node_affinity,
    pod_security,
    resources,
    tolerations,
)
from stagecoach_workflows.policy import RETRY_EXIT_CODES, Shape, TaskPolicy

NAME = "train-{{inputs.parameters.key}}"
KIND = "jobsets.jobset.x-k8s.io"
WORKFLOW_LABEL = "stagecoach/workflow"
WORKFLOW = "{{workflow.uid}}"
RETRY = "not (lastRetry.message contains 'failure condition')"
"""Watch again after anything but the JobSet's own failure: it has restarted its pods as often as their exit codes allow."""
_PORT = 29500


def manifest(shape: Shape, deployment: Deployment, policy: TaskPolicy, command: list[str], args: list[str]) -> str:
    """Return the JobSet as YAML, with Argo's tags for run, task and key left in it."""
    job = {
        "parallelism": shape.nodes,
        "completions": shape.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_failure_rules()},
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/part-of": "stagecoach", "stagecoach/stage": "train"}},
            "spec": _pod(shape, deployment, policy, command, args),
        },
    }
    labels = {"app.kubernetes.io/part-of": "stagecoach", WORKFLOW_LABEL: WORKFLOW}
    if deployment.kueue_queue:
        labels["kueue.x-k8s.io/queue-name"] = deployment.kueue_queue
    document = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": policy.retries,
                # a permanent exit code ends the Job by its own rule, and then the whole JobSet
                "rules": [{"name": "permanent", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "ttlSecondsAfterFinished": 60,
            "replicatedJobs": [{"name": "train", "replicas": 1, "template": {"spec": job}}],
        },
    }
    text: str = yaml.safe_dump(document, sort_keys=False, width=1000)
    return text


def _pod_failure_rules() -> list[dict[str, Any]]:
    """Restart evicted pods and those with a retryable exit code; every other exit code is permanent."""
    return [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Count", "onExitCodes": {"operator": "In", "values": sorted(RETRY_EXIT_CODES)}},
        {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0, *sorted(RETRY_EXIT_CODES)]}},
    ]


def _pod(
    shape: Shape, deployment: Deployment, policy: TaskPolicy, command: list[str], args: list[str]
) -> dict[str, Any]:
    asked = policy.resources
    container = {
        "name": "main",
        "image": deployment.image("train"),
        "imagePullPolicy": deployment.image_pull_policy,
        "command": command,
        "args": args,
        "env": [
            {"name": "STAGECOACH_IMAGE_DIGEST", "value": deployment.image("train")},
            {"name": "MASTER_ADDR", "value": f"{NAME}-train-0-0.{NAME}"},
            {"name": "MASTER_PORT", "value": str(_PORT)},
        ],
        "envFrom": environment_sources(deployment, "train", "train"),
        "ports": [{"containerPort": _PORT}],
        "resources": resources(policy),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH_PATH},
            {"name": "artifacts", "mountPath": ARTIFACTS_PATH},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    affinity, taints = _one_node_each(), deployment.tolerations
    if shape.gpus:
        affinity |= node_affinity(deployment, shape)
        taints += deployment.gpu_tolerations
    return {
        "restartPolicy": "Never",
        "serviceAccountName": deployment.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": policy.grace_seconds,
        "securityContext": pod_security(deployment),
        "affinity": affinity,
        "nodeSelector": deployment.train_node_selector or deployment.node_selector,
        "tolerations": tolerations(taints),
        "imagePullSecrets": [{"name": secret} for secret in deployment.image_pull_secrets],
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": gib(asked.scratch_gib)}},
            {"name": "artifacts", "emptyDir": {"sizeLimit": "256Mi"}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": gib(asked.shared_memory_gib)}},
        ],
    }


def _one_node_each() -> dict[str, Any]:
    """Keep two pods of one training off the same node: each takes all GPUs that the recipe wants of a node."""
    term = {
        "labelSelector": {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": NAME}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]
        }
    }
