"""The parts of a pod that are the same for Argo's containers and for a JobSet, as plain Kubernetes data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from stagecoach_workflows.deployment import Deployment, Toleration
from stagecoach_workflows.policy import GPU_RESOURCE, Shape, TaskPolicy

ARTIFACTS_PATH = "/work/artifacts"
SCRATCH_PATH = "/tmp"
NOTIFY_PATH = "/work/notify"
_ASK_THE_HUB = ("plan", "download", "export")


def pod_security(deployment: Deployment) -> dict[str, Any]:
    """Return the pod's security context for the ``restricted`` standard; fsGroup lets it read an identity token."""
    user = deployment.user_id
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return the container's security context for the ``restricted`` standard, with a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def environment_sources(deployment: Deployment, template: str, image: str) -> list[dict[str, Any]]:
    """Return the ConfigMap and Secrets whose keys become environment variables; each may be absent.

    Only tasks that talk to the Hub see its token.
    """
    sources: list[dict[str, Any]] = [
        {"configMapRef": {"name": deployment.store_config, "optional": True}},
        {"secretRef": {"name": deployment.store_secret, "optional": True}},
    ]
    if template in _ASK_THE_HUB or image in _ASK_THE_HUB:
        sources.append({"secretRef": {"name": deployment.hub_secret, "optional": True}})
    return sources


def resources(policy: TaskPolicy) -> dict[str, dict[str, str]]:
    """Return requests and limits; cores have no limit, as throttling would only make a stage slower."""
    asked = policy.resources
    limits = {"memory": gib(asked.memory_gib), "ephemeral-storage": gib(asked.scratch_gib + 1)}
    if asked.gpus:
        limits[GPU_RESOURCE] = str(asked.gpus)
    cpu = f"{asked.cpu:g}" if asked.cpu >= 1 else f"{round(asked.cpu * 1000)}m"
    return {"requests": {"cpu": cpu, **limits}, "limits": limits}


def gib(size: float) -> str:
    """Return a quantity: whole Gi, else whole Mi."""
    return f"{size:g}Gi" if size == int(size) else f"{round(size * 1024)}Mi"


def node_affinity(deployment: Deployment, shape: Shape) -> dict[str, Any]:
    """Return the affinity to nodes with one of the deployment's GPUs that has the memory the recipe asks for."""
    products = [product for product in deployment.gpu_products if _fits(product, shape.gpu_memory_gib)]
    if not products:
        return {}
    expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": products}
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def tolerations(taints: Iterable[Toleration]) -> list[dict[str, Any]]:
    """Return tolerations as Kubernetes spells them, unset fields left out."""
    return [taint.model_dump(exclude_none=True) for taint in taints]


def pod_patch(policy: TaskPolicy) -> str:
    """Return the patch for what a template has no field for."""
    return json.dumps({"terminationGracePeriodSeconds": policy.grace_seconds})


def manifest_patch() -> str:
    """Return the patch of a pod that applies a manifest: Argo's init container writes it to /tmp of a read-only root."""
    mount = {"name": "tmp-dir-argo", "mountPath": "/tmp"}  # a volume that Argo gives every pod
    return json.dumps({"initContainers": [{"name": "init", "volumeMounts": [mount]}]})


def _fits(product: str, gpu_memory_gib: float | None) -> bool:
    """Products name their memory (NVIDIA-A100-SXM4-40GB); one that does not is taken to fit."""
    sizes = [part.removesuffix("GB") for part in product.split("-") if part.endswith("GB")]
    gigabytes = next((float(size) for size in sizes if size.isdecimal()), None)
    return gigabytes is None or gpu_memory_gib is None or gigabytes >= gpu_memory_gib
