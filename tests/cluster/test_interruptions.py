"""Runs that are interfered with go on and end in the same weights, bit for bit, or say why they cannot."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.source_tree import ROOT
from tests.cluster.client import Cluster, Object
from tests.cluster.conftest import LONG_TRAINING

pytestmark = pytest.mark.cluster

LOCAL = ROOT / "tests/cluster/local"


def delete(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("delete", "pod", pod, "--wait=false")


def evict(cluster: Cluster, pod: str) -> None:
    """What a drain of the node does."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": cluster.namespace},
    }
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


KILL = (
    "import os, signal, pathlib\n"
    "pids = [int(p.name) for p in pathlib.Path('/proc').iterdir() if p.name.isdigit()]\n"
    "train = [p for p in pids if b'stagecoach_train' in pathlib.Path(f'/proc/{p}/cmdline').read_bytes()]\n"
    "argoexec = [p for p in train if b'argoexec' in pathlib.Path(f'/proc/{p}/cmdline').read_bytes()]\n"
    "os.kill(min(set(train) - set(argoexec)), signal.SIGKILL)\n"
)


def kill(cluster: Cluster, pod: str) -> None:
    """SIGKILL of the program itself, as the kernel or a crash would."""
    cluster.kubectl("exec", pod, "-c", "main", "--", "python", "-c", KILL)


@pytest.mark.parametrize("interfere", [delete, evict, kill], ids=lambda f: f.__name__)
def test_a_training_goes_on_and_ends_in_the_same_weights(
    cluster: Cluster,
    store_url: str,
    undisturbed: dict[str, str],
    interfere: Callable[[Cluster, str], None],
) -> None:
    name = cluster.submit("micro", store_url, set=LONG_TRAINING)
    interfere(cluster, cluster.first_checkpoint(name, store_url))
    assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    attempts = cluster.attempts(name, "train")
    assert [attempt.phase in ("Failed", "Error") for attempt in attempts] == [True, False]
    assert cluster.exported_weights(store_url) == undisturbed


def test_the_store_goes_away_for_half_a_minute(cluster: Cluster, store_url: str, undisturbed: dict[str, str]) -> None:
    """Only where the store is ours to stop."""
    script = LOCAL / "seaweed.sh"
    if not Path("/run/s3/pid").is_file():
        pytest.skip("the store of this cluster is not ours to stop")
    name = cluster.submit("micro", store_url, set=LONG_TRAINING)
    cluster.first_checkpoint(name, store_url)
    subprocess.run([script, "stop"], check=True)
    try:
        subprocess.run(["sleep", "30"], check=True)
    finally:
        subprocess.run([script, "start"], check=True)
    assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    assert cluster.exported_weights(store_url) == undisturbed


def test_out_of_memory_is_said_and_not_tried_again(cluster: Cluster, store_url: str) -> None:
    """The real OOM killer, by a memory limit of a template of its own."""

    def starve(spec: Object) -> None:
        train = next(t for t in spec["templates"] if t["name"] == "train")
        for kind in ("requests", "limits"):
            train["container"]["resources"][kind]["memory"] = "100Mi"

    with cluster.variant("micro", starve) as recipe:
        name = cluster.submit(recipe, store_url)
        assert cluster.wait(name) == "Failed"
    (attempt,) = cluster.attempts(name, "train")
    assert "OOMKilled" in attempt.message


def test_helm_upgrade_leaves_a_run_intact(
    cluster: Cluster, store_url: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """The upgrade changes every template, so each gets another name; the run keeps the one that it began with."""
    name = cluster.submit("micro", store_url, set=LONG_TRAINING)
    cluster.first_checkpoint(name, store_url)
    chart = str(ROOT / "charts/stagecoach")
    helm = ["helm", "upgrade", "stagecoach", chart, "--namespace", cluster.namespace, "--reuse-values"]
    before = cluster.get("workflowtemplate", "stagecoach-micro")["metadata"]["annotations"]["stagecoach/template"]
    subprocess.run([*helm, "--set", "labels.upgraded=yes"], check=True, capture_output=True)
    try:
        after = cluster.get("workflowtemplate", "stagecoach-micro")["metadata"]["annotations"]["stagecoach/template"]
        assert after != before
        assert cluster.get("workflowtemplate", before)["metadata"]["name"] == before
        assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    finally:
        subprocess.run([*helm, "--set", "labels.upgraded=null"], check=True, capture_output=True)
    assert cluster.exported_weights(store_url) == undisturbed
