"""What the cluster's tests say to it, by `kubectl` and `argo` as people do: submit, wait, look, interfere."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from stagecoach.outputs import Input, open_input
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store

RUN_SECONDS = 900.0
POLL_SECONDS = 1.0
ENDED = ("Succeeded", "Failed", "Error")

Object = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Node:
    """One attempt of one task, as the Workflow's status tells it."""

    task: str
    phase: str
    message: str
    exit_code: str | None
    pod: str
    started: str
    finished: str
    progress: str


def seconds_between(start: str, end: str) -> float:
    """Difference of two times as Kubernetes writes them."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


class Cluster:
    """The namespace that the chart is installed in."""

    def __init__(self, namespace: str, settings: Settings) -> None:
        self.namespace = namespace
        self.settings = settings

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of one kubectl command in the namespace."""
        return self._run("kubectl", *arguments, stdin=stdin)

    def argo(self, *arguments: str) -> str:
        """Standard output of one argo command in the namespace."""
        return self._run("argo", *arguments)

    def _run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        command = [program, "--namespace", self.namespace, *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def get(self, *arguments: str) -> Object:
        """One object, or a list of them, as data."""
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def submit(self, recipe: str, store: str, **parameters: str) -> str:
        """Start a run from the alias of a recipe, as users do; returns the workflow's name."""
        command = ["submit", "--from", f"workflowtemplate/stagecoach-{recipe}", "--output", "name"]
        for name, value in {"store": store, **parameters}.items():
            command += ["--parameter", f"{name}={value}"]
        return self.argo(*command).strip()

    @contextmanager
    def variant(self, recipe: str, change: Callable[[Object], None]) -> Iterator[str]:
        """A template of its own with something changed in it; gives the name to submit it by."""
        template = self.get("workflowtemplate", f"stagecoach-{recipe}")
        change(template["spec"])
        name = f"variant-{secrets.token_hex(4)}"
        template["metadata"] = {"name": f"stagecoach-{name}"}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(template))
        try:
            yield name
        finally:
            self.kubectl("delete", "workflowtemplate", f"stagecoach-{name}")

    def workflow(self, name: str) -> Object:
        """The Workflow object."""
        return self.get("workflow", name)

    def wait(self, name: str, seconds: float = RUN_SECONDS) -> str:
        """Wait until a workflow ended; returns its phase."""

        def ended() -> str | None:
            phase = str(self.workflow(name).get("status", {}).get("phase", ""))
            return phase if phase in ENDED else None

        return self.until(ended, f"workflow {name} to end", seconds)

    def until(self, look: Callable[[], Result | None], what: str, seconds: float = RUN_SECONDS) -> Result:
        """Look again and again until there is something to see."""
        end = time.monotonic() + seconds
        while True:
            found = look()
            if found is not None:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            time.sleep(POLL_SECONDS)

    def nodes(self, name: str) -> list[Node]:
        """Every attempt of every task that got a pod, or would have, in order of its start."""
        nodes = self.workflow(name).get("status", {}).get("nodes", {}).values()
        found = [
            Node(
                task=node["displayName"].split("(")[0],
                phase=node["phase"],
                message=node.get("message", ""),
                exit_code=node.get("outputs", {}).get("exitCode"),
                pod=self._pod_name(name, node),
                started=node.get("startedAt") or "",
                finished=node.get("finishedAt") or "",
                progress=node.get("progress", ""),
            )
            for node in nodes
            if node["type"] in ("Pod", "Skipped")
        ]
        return sorted(found, key=lambda node: (node.started, node.task))

    def waiting(self, name: str) -> list[str]:
        """What the tasks that have no pod yet wait for; Argo holds a lock by the node above the attempts."""
        nodes = self.workflow(name).get("status", {}).get("nodes", {}).values()
        return [node.get("message", "") for node in nodes if node["phase"] == "Pending"]

    @staticmethod
    def _pod_name(workflow: str, node: Mapping[str, Any]) -> str:
        return f"{workflow}-{node.get('templateName', '')}-{node['id'].rsplit('-', 1)[-1]}"

    def attempts(self, name: str, task: str) -> list[Node]:
        """The attempts of one task that got a pod."""
        return [node for node in self.nodes(name) if node.task == task and node.phase not in ("Skipped", "Omitted")]

    def ran(self, name: str) -> set[str]:
        """Tasks that got a pod, without the plan and the exit hook."""
        tasks = {node.task for node in self.nodes(name) if node.phase not in ("Skipped", "Omitted")}
        return {task for task in tasks if task != "plan" and "onExit" not in task}

    def running_pod(self, name: str, task: str) -> str:
        """Wait until a task's pod runs; returns its name."""

        def running() -> str | None:
            pods = [node.pod for node in self.attempts(name, task) if node.phase == "Running"]
            return pods[-1] if pods else None

        return self.until(running, f"{task} of {name} to run")

    def store(self, url: str) -> ObjectStore:
        """The store of a run, read with the test's own credentials."""
        return open_store(url, self.settings)

    def first_checkpoint(self, name: str, url: str) -> str:
        """Wait for the first finished checkpoint of a run; returns the training pod's name at that moment."""
        store = self.store(url)

        def saved() -> bool | None:
            return any("/iter_" in o.key and o.key.endswith("manifest.json") for o in store.list("trained/")) or None

        pod = self.running_pod(name, "train")
        self.until(saved, f"a checkpoint of {name}")
        return pod

    def export(self, url: str, scratch: Path) -> Input:
        """The one finished export in a store, its files brought to ``scratch`` when they are asked for."""
        store = self.store(url)
        prefixes = [
            o.key.removesuffix("manifest.json") for o in store.list("exports/") if o.key.endswith("/manifest.json")
        ]
        assert len(prefixes) == 1, prefixes
        return open_input(store, prefixes[0], scratch)

    def exported_weights(self, url: str) -> dict[str, str]:
        """sha256 of each weight file of the one export in a store."""
        objects = self.export(url, Path()).manifest.objects
        return {name: entry.sha256 for name, entry in objects.items() if name.endswith(".safetensors")}
