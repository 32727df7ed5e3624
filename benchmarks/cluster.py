"""Where the time of a run on a cluster goes: the plan's pod, each task's pod beside its work, and a run without change.

    tests/cluster/in-cluster.sh .venv/bin/python -m benchmarks.cluster      (make bench-cluster)

Writes results/cluster.json and exits 1 beyond a limit of floors.toml. A task's row has seconds by Argo (its node), of
the main container (by the kubelet, whole seconds) and of the work in it (the manifest's own); what is left of the node
is the pod's overhead: scheduling, mounts, Argo's init and wait containers, and the start of Python and its packages.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.floors import judge
from stagecoach.settings import Settings
from tests.cluster.client import Cluster, Node, seconds_between
from tests.cluster.setup_store import ACCESS_KEY, BUCKET, ENDPOINT_URL, SECRET_KEY

_RESULT = Path(__file__).parent / "results/cluster.json"


def connect() -> Cluster:
    """The cluster of KUBECONFIG and its store."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    endpoint = os.environ.get("STAGECOACH_S3_ENDPOINT_URL", ENDPOINT_URL)
    settings = Settings(s3_endpoint_url=endpoint, s3_region="us-east-1", s3_addressing="path")
    return Cluster(os.environ.get("STAGECOACH_NAMESPACE", "stagecoach"), settings)


def run(cluster: Cluster, recipe: str, store: str) -> str:
    """Run a recipe to its end; returns the workflow's name.

    Raises:
        RuntimeError: It did not succeed.
    """
    name = cluster.submit(recipe, store)
    if (phase := cluster.wait(name)) != "Succeeded":
        raise RuntimeError(f"workflow {name} ended as {phase}: look at it with argo get {name}")
    return name


def work_seconds(cluster: Cluster, store: str) -> dict[str, float]:
    """Task -> seconds between the start of the stage's own work and its last object, from the manifests of a store."""
    found = cluster.store(store)
    keys = [o.key for o in found.list("") if o.key.endswith("/manifest.json") and "/iter_" not in o.key]
    manifests = [json.loads(found.get(key)) for key in keys]
    return {manifest["task"]: _seconds(manifest["timings"]) for manifest in manifests}


def _seconds(timings: dict[str, float]) -> float:
    return sum(value for name, value in timings.items() if not name.endswith("_unix_seconds"))


def row(cluster: Cluster, node: Node, work: float | None) -> dict[str, Any]:
    """One task's seconds."""
    statuses = cluster.get("pod", node.pod)["status"]["containerStatuses"]
    main = next(status["state"]["terminated"] for status in statuses if status["name"] == "main")
    seconds = seconds_between(node.started, node.finished)
    return {
        "task": node.task,
        "node_seconds": seconds,
        "main_seconds": seconds_between(main["startedAt"], main["finishedAt"]),
        **({} if work is None else {"work_seconds": round(work, 1), "overhead_seconds": round(seconds - work, 1)}),
    }


def main() -> int:
    """Run the recipe twice in a fresh place of the store, and write what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="tiny-cpu")
    recipe = parser.parse_args().recipe
    cluster, store = connect(), f"s3://{BUCKET}/bench-{secrets.token_hex(4)}"
    first = run(cluster, recipe, store)
    work = work_seconds(cluster, store)
    nodes = [node for node in cluster.nodes(first) if node.phase == "Succeeded"]
    rows = [row(cluster, node, work.get(node.task)) for node in nodes]
    with cluster.variant(recipe, lambda spec: spec.pop("hooks")) as without_hook:
        again = run(cluster, without_hook, store)
    (plan,) = cluster.attempts(again, "plan")
    status, again_status = cluster.workflow(first)["status"], cluster.workflow(again)["status"]
    plan_start = cluster.get("pod", plan.pod)["status"]["startTime"]
    figures = {
        "run_seconds": seconds_between(status["startedAt"], status["finishedAt"]),
        "pods": len(rows),
        "plan_seconds": next(r["node_seconds"] for r in rows if r["task"] == "plan"),
        "overhead_seconds_a_pod": round(mean(r["overhead_seconds"] for r in rows if "overhead_seconds" in r), 1),
        "again_seconds": seconds_between(plan_start, again_status["finishedAt"]),
    }
    load = round(os.getloadavg()[1], 1)
    machine = {"cpus": os.cpu_count(), "load_average_5_minutes": load, "day": f"{datetime.now():%Y-%m-%d}"}
    result = {"recipe": recipe, "machine": machine, "figures": figures, "tasks": rows}
    _RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in rows:
        print(" ".join(f"{name}={value}" for name, value in line.items()))
    return judge("cluster", figures)


if __name__ == "__main__":
    raise SystemExit(main())
