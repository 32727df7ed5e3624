"""The chart's network policies as the network enforces them: who reaches the store, the API server, the Hub, and a stage."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.cluster.client import Cluster

pytestmark = pytest.mark.cluster

TARGETS = {
    "store": ("10.88.0.1", 8333),
    "store, another port": ("10.88.0.1", 9333),
    "api server": ("10.96.0.1", 443),
    "hub": ("10.88.0.1", 443),  # where the values of this cluster say that it is
    "names": ("10.96.0.10", 53),
}
STAGE = {"app.kubernetes.io/part-of": "stagecoach"}
LISTEN_PORT = 8080
SETTLE_SECONDS = 20
"""A pod's policies are enforced a moment after it got its address."""
PROBE = """
import json, os, socket, threading, time
listener = socket.create_server(("", int(os.environ["PORT"])))
threading.Thread(target=lambda: [listener.accept() for _ in iter(int, 1)], daemon=True).start()
time.sleep(float(os.environ["SETTLE"]))
def reaches(target):
    try:
        socket.create_connection(tuple(target), 3).close()
    except OSError:
        return False
    return True
print(json.dumps({name: reaches(target) for name, target in json.loads(os.environ["TARGETS"]).items()}), flush=True)
time.sleep(300)
"""


@contextmanager
def probe(cluster: Cluster, labels: Mapping[str, str], targets: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    """A pod with these labels that listens, and says once what it reaches; gives its name."""
    name = f"probe-{secrets.token_hex(4)}"
    values = {"PORT": str(LISTEN_PORT), "SETTLE": str(SETTLE_SECONDS), "TARGETS": json.dumps(targets)}
    image = next(
        variable["value"]
        for template in cluster.get("workflowtemplate", "stagecoach-micro")["spec"]["templates"]
        if template["name"] == "plan"
        for variable in template["container"]["env"]
        if variable["name"] == "STAGECOACH_IMAGE_DIGEST"
    )
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-c", PROBE],
        "env": [{"name": key, "value": value} for key, value in values.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "nodeSelector": {"kubernetes.io/hostname": "node1"},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        yield name
    finally:
        cluster.kubectl("delete", "pod", name, "--wait=false")


def answer(cluster: Cluster, pod: str) -> dict[str, bool]:
    """What a probe says."""

    def said() -> dict[str, bool] | None:
        if cluster.get("pod", pod)["status"]["phase"] != "Running":
            return None
        text = cluster.kubectl("logs", pod)
        found: dict[str, bool] | None = json.loads(text) if text.endswith("\n") else None
        return found

    return cluster.until(said, f"{pod} to answer", 120)


def address(cluster: Cluster, pod: str) -> str:
    """Address of a pod, as soon as it has one."""
    found: str = cluster.until(
        lambda: cluster.get("pod", pod)["status"].get("podIP") or None, f"an address of {pod}", 60
    )
    return found


def test_a_stage_reaches_what_it_needs_and_nobody_reaches_a_stage(cluster: Cluster) -> None:
    convert, download = ({**STAGE, "stagecoach/stage": stage} for stage in ("convert", "download"))
    with probe(cluster, convert, TARGETS) as stage, probe(cluster, download, TARGETS) as asks_the_hub:
        to_stage = {"stage": (address(cluster, stage), LISTEN_PORT)}
        with probe(cluster, {}, {**TARGETS, **to_stage}) as stranger:
            of_stranger = answer(cluster, stranger)
        if of_stranger["stage"]:
            pytest.skip("the network of this cluster enforces no policies")
        assert of_stranger == {**dict.fromkeys(TARGETS, True), "stage": False}
        allowed = {"store": True, "store, another port": False, "api server": True, "names": True}
        assert answer(cluster, stage) == {**allowed, "hub": False}
        assert answer(cluster, asks_the_hub) == {**allowed, "hub": True}
