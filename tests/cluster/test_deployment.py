"""What the chart and Argo bring around a run: the doctor, the exit hook, the semaphore, metrics, and Argo's strict mode."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.architecture.source_tree import ROOT
from tests.cluster.client import Cluster, Object
from tests.cluster.conftest import LONG_TRAINING

pytestmark = pytest.mark.cluster

LISTENER = ("10.96.0.1", 6443)
"""An address inside the local cluster that the chart's network policies let every stage reach, and where nobody listens."""
CONTROLLER_METRICS = "https://127.0.0.1:9090/metrics"


@contextmanager
def webhook() -> Iterator[list[Object]]:
    """A server that takes what the exit hook tells; gives what it has heard so far."""
    heard: list[Object] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    try:
        server = HTTPServer(LISTENER, Handler)
    except OSError:
        pytest.skip("the network of this cluster is not this machine's, so no webhook can listen in it")
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield heard
        server.shutdown()


@contextmanager
def told(cluster: Cluster, url: str) -> Iterator[None]:
    """The Secret that the exit hook reads, with this address in it."""
    cluster.kubectl("create", "secret", "generic", "stagecoach-notify", f"--from-literal=webhook-url={url}")
    try:
        yield
    finally:
        cluster.kubectl("delete", "secret", "stagecoach-notify")


def test_helm_test_tries_the_store_and_the_rights(cluster: Cluster) -> None:
    command = ["helm", "test", "stagecoach", "--namespace", cluster.namespace, "--timeout", "4m"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    store, rights = (cluster.kubectl("logs", f"stagecoach-doctor-{pod}") for pod in ("store", "cluster"))
    assert "conditional put" in store
    assert "upload in parts" in store
    assert "may create workflows" in rights
    assert re.search(r"\S+ has 4", rights), rights


def test_what_is_in_no_template_is_refused(cluster: Cluster) -> None:
    """The controller here enforces ``templateReferencing: Strict``; so every run of these tests proves that ours obey."""
    inline = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "inline-"},
        "spec": {"entrypoint": "wait", "templates": [{"name": "wait", "suspend": {}}]},
    }
    name = cluster.kubectl("create", "-o", "name", "-f", "-", stdin=json.dumps(inline)).strip().rsplit("/", 1)[1]
    try:

        def status() -> Object | None:
            found: Object = cluster.workflow(name).get("status", {})
            return found if found.get("phase") else None

        found = cluster.until(status, "the controller to look at it", 60)
        if found["phase"] == "Running":
            pytest.skip("the controller of this cluster does not restrict what may be submitted")
        assert "workflowTemplateRef" in found["message"]
    finally:
        cluster.kubectl("delete", "workflow", name)


def test_the_exit_hook_tells_a_webhook_and_never_fails_a_run(cluster: Cluster, store_url: str) -> None:
    with webhook() as heard, told(cluster, "http://{}:{}/".format(*LISTENER)):
        good = cluster.submit("micro", store_url)
        assert cluster.wait(good) == "Succeeded", cluster.nodes(good)
        bad = cluster.submit("micro", store_url, set="train.nonsense=1")
        assert cluster.wait(bad, 180) == "Failed"
    of = {end["workflow"]: end for end in heard}
    assert (of[good]["status"], of[bad]["status"]) == ("Succeeded", "Failed")
    assert of[good]["export"].startswith(f"{store_url}/exports/")
    assert of[bad]["failed_task"] == "plan"
    with told(cluster, "http://{}:{}/".format(*LISTENER)):  # where nobody listens any more
        unheard = cluster.submit("micro", store_url)
        assert cluster.wait(unheard, 180) == "Succeeded"
    (hook,) = [node for node in cluster.nodes(unheard) if "onExit" in node.task]
    assert hook.phase == "Succeeded"


def test_trainings_with_gpus_wait_for_each_other(cluster: Cluster, store_url: str) -> None:
    """Two different trainings that the node has room for; the chart's ``train.maxConcurrent`` is 1."""
    templates = cluster.get("workflowtemplate", "stagecoach-mistral-7b-4xa100")["spec"]["templates"]
    semaphores = next(t for t in templates if t["name"] == "train")["synchronization"]["semaphores"]

    def limit(spec: Object) -> None:
        train = next(t for t in spec["templates"] if t["name"] == "train")
        train["synchronization"]["semaphores"] = semaphores
        train["container"]["resources"]["requests"]["cpu"] = "100m"
        for kind in ("requests", "limits"):
            train["container"]["resources"][kind]["nvidia.com/gpu"] = "1"

    with cluster.variant("micro", limit) as recipe:
        names = [cluster.submit(recipe, store_url, set=f"{LONG_TRAINING} train.seed={seed}") for seed in (1, 2)]

        def one_waits() -> bool | None:
            trains = [node for name in names for node in cluster.attempts(name, "train")]
            assert len([node for node in trains if node.phase == "Running"]) <= 1
            return any("gpu-trainings" in message for name in names for message in cluster.waiting(name)) or None

        cluster.until(one_waits, "one training to wait for the other", 300)
        assert [cluster.wait(name) for name in names] == ["Succeeded", "Succeeded"]


def test_argo_serves_the_metrics_that_the_alerts_look_at(cluster: Cluster, store_url: str) -> None:
    assert cluster.wait(cluster.submit("micro", store_url)) == "Succeeded"
    chart = ["helm", "template", str(ROOT / "charts/stagecoach"), "--set", "store.url=s3://bucket/prefix"]
    chart += ["--set", "requireArgo=false", "--set", "monitoring.prometheusRule=true"]
    rules = subprocess.run(
        [*chart, "--show-only", "templates/monitoring.yaml"], capture_output=True, text=True, check=True
    )
    asked = set(re.findall(r"argo_workflows_\w+", rules.stdout))
    unchecked = ssl.create_default_context()  # the controller's certificate is its own
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(CONTROLLER_METRICS, timeout=10, context=unchecked) as response:
            metrics = response.read().decode()
    except OSError:
        pytest.skip("the controller of this cluster is not on this machine")
    served = set(re.findall(r"^(\w+)(?:\{| )", metrics, re.MULTILINE))
    assert "argo_workflows_stagecoach_runs_total" in asked
    assert asked - served == set()
    runs = [line for line in metrics.splitlines() if line.startswith("argo_workflows_stagecoach_runs_total")]
    assert [line for line in runs if 'recipe="micro"' in line and 'status="Succeeded"' in line]
