"""``submit``, ``status``, ``logs`` and ``cancel`` against the real API, with the rights of the submitter's account alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.architecture.source_tree import ROOT
from tests.cluster.client import Cluster
from tests.cluster.conftest import LONG_TRAINING

pytestmark = pytest.mark.cluster

Stagecoach = Callable[..., "subprocess.CompletedProcess[str]"]
ON_THE_GPU_NODE = {
    "image_pull_policy": "Never",
    "node_selector": {"kubernetes.io/hostname": "node1"},
    "train_node_selector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
    "resources": {kind: {"cpu": 0.05} for kind in ("train", "convert", "shard", "pack", "export", "download-model")},
}
"""The test cluster as a deployment: every pod may run on the GPU node, but only train is sent there."""


@pytest.fixture(scope="session")
def stagecoach(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stagecoach:
    """The command line with a kubeconfig that holds the submitter's token."""
    config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    context = next(c for c in config["contexts"] if c["name"] == config["current-context"])
    context["context"] |= {"user": "submitter", "namespace": cluster.namespace}
    token = cluster.kubectl("create", "token", "stagecoach-submitter").strip()
    config["users"] = [{"name": "submitter", "user": {"token": token}}]
    file = tmp_path_factory.mktemp("submitter") / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    environ = {**os.environ, "KUBECONFIG": str(file)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stagecoach_workflows", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)

    return run


def started(result: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Run id and workflow name that ``submit`` says."""
    said = re.search(r"run (\S+): workflow (\S+)", result.stdout)
    assert said is not None, result.stderr
    return said[1], said[2]


def test_submit_wait_ends_with_the_exit_code_of_the_run(stagecoach: Stagecoach, store_url: str) -> None:
    """78 is that of a recipe that the plan refused; the sentence is shown too."""
    result = stagecoach("submit", "--from", "stagecoach-micro", "--store", store_url, "--set", "train.gpus=1", "--wait")
    assert result.returncode == 78, result.stdout + result.stderr
    assert "template" in result.stdout


def test_a_run_is_seen_cancelled_and_goes_on_from_its_checkpoint(
    cluster: Cluster, stagecoach: Stagecoach, store_url: str, undisturbed: dict[str, str]
) -> None:
    settings = [word for setting in LONG_TRAINING.split() for word in ("--set", setting)]
    submit = ["submit", "--from", "stagecoach-micro", "--store", store_url, *settings]
    run, name = started(stagecoach(*submit))
    cluster.first_checkpoint(name, store_url)
    look = [("status", run), ("logs", run, "--task", "train", "--tail", "50")]
    with ThreadPoolExecutor() as pool:  # at once, as the training must still be going on when it is cancelled
        status, logs = pool.map(lambda words: stagecoach(*words), look)
    assert re.search(r"train\s+Running", status.stdout), status.stdout + status.stderr
    assert "step" in logs.stdout, logs.stdout + logs.stderr
    assert stagecoach("cancel", run).returncode == 0
    assert cluster.wait(name, 300) == "Failed"
    assert stagecoach("status", run, "--wait").returncode == 75
    again = stagecoach(*submit, "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    store = cluster.store(store_url)
    assert len([o.key for o in store.list("trained/") if "/attempts/" in o.key]) == 2
    assert cluster.exported_weights(store_url) == undisturbed


def test_new_data_fetches_no_weights(cluster: Cluster, stagecoach: Stagecoach, store_url: str, tmp_path: Path) -> None:
    """A nightly run: the same recipe over a prefix of the bucket to which a file was added."""
    folder = f"{store_url}-chats"
    recipe = yaml.safe_load((ROOT / "workflows/stagecoach_workflows/recipes/micro.yaml").read_text())
    recipe["data"]["sources"] = [{"name": "chats", "source": {"kind": "s3", "url": folder}}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(ON_THE_GPU_NODE))
    submit = ["submit", str(tmp_path / "recipe.yaml"), "--deployment", str(tmp_path / "deployment.yaml")]
    submit += ["--images", str(ROOT / "build/images.lock.json"), "--store", store_url]

    def ran_after_adding(day: str) -> set[str]:
        cluster.store(folder).put(f"{day}.jsonl", conversations(day))
        _, name = started(stagecoach(*submit))
        assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
        return cluster.ran(name)

    sources = {"download-model", "download-tokenizer", "download-data-chats"}
    assert ran_after_adding("monday") == sources | {"convert", "shard", "pack", "train", "export"}
    assert ran_after_adding("tuesday") == {"download-data-chats", "pack", "train", "export"}


def conversations(topic: str) -> bytes:
    """Forty short conversations as JSON lines."""
    rows = (
        [{"role": "user", "content": f"{topic}: what is {i} and {i}?"}, {"role": "assistant", "content": f"{2 * i}."}]
        for i in range(40)
    )
    return "".join(json.dumps({"messages": row}) + "\n" for row in rows).encode()


@pytest.fixture
def submit_on_two_nodes(cluster: Cluster, store_url: str, tmp_path: Path) -> Iterator[list[str]]:
    """The words of a submission whose training runs on two nodes; what a failed test left of it is deleted."""
    if "jobsets.jobset.x-k8s.io" not in cluster.kubectl("get", "crd", "-o", "name"):
        pytest.skip("this cluster has no JobSet controller")
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(yaml.safe_dump(ON_THE_GPU_NODE))
    submit = ["submit", "micro", "--store", store_url, "--deployment", str(deployment)]
    submit += ["--images", str(ROOT / "build/images.lock.json")]
    yield [*submit, "--set", "train.nodes=2", "--set", "train.layout.data_parallel=2"]
    cluster.kubectl("delete", "jobsets", "--all")


def test_a_training_on_two_nodes_is_a_jobset_of_two_pods(
    cluster: Cluster, stagecoach: Stagecoach, store_url: str, submit_on_two_nodes: list[str]
) -> None:
    """The recipe is brought by the submitter; its ranks find each other by the names that JobSet gives them."""
    _, name = started(stagecoach(*submit_on_two_nodes))
    labels = "jobset.sigs.k8s.io/replicatedjob-name=train"

    def both_run() -> bool | None:
        pods = cluster.get("pods", "-l", labels)["items"]
        return len([pod for pod in pods if pod["status"]["phase"] in ("Running", "Succeeded")]) == 2 or None

    cluster.until(both_run, "two pods of the JobSet", 300)
    assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    assert cluster.get("jobsets")["items"] == []
    assert len(cluster.exported_weights(store_url)) == 1


def test_a_training_on_two_nodes_is_found_again_by_a_retry_and_deleted_by_a_cancel(
    cluster: Cluster, stagecoach: Stagecoach, submit_on_two_nodes: list[str]
) -> None:
    """The pod that watches the JobSet is lost; the next one finds the same training under the same name."""
    run, name = started(stagecoach(*submit_on_two_nodes, "--set", "train.steps=100000"))
    (jobset,) = cluster.until(lambda: cluster.get("jobsets")["items"] or None, "the JobSet", 300)
    cluster.kubectl("delete", "pod", cluster.running_pod(name, "train"), "--wait=false")

    def watched_again() -> bool | None:
        phases = [attempt.phase for attempt in cluster.attempts(name, "train")]
        return (len(phases) == 2 and phases[1] == "Running") or None

    cluster.until(watched_again, "a second pod that watches the JobSet", 300)
    (found,) = cluster.get("jobsets")["items"]
    assert found["metadata"]["uid"] == jobset["metadata"]["uid"]
    assert stagecoach("cancel", run).returncode == 0
    assert cluster.wait(name, 300) == "Failed"
    cluster.until(lambda: cluster.get("jobsets")["items"] == [] or None, "the JobSet to be deleted", 120)
