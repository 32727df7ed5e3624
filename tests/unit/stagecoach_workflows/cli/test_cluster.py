"""``submit``, ``status``, ``logs`` and ``cancel`` against a small stand-in for the Kubernetes API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from stagecoach_workflows.cli.main import app
from tests.loopback import QuietHandler, served

ARGO = "/apis/argoproj.io/v1alpha1/namespaces/ml"
TRAIN = {"displayName": "train", "type": "Pod", "templateName": "train", "startedAt": "2026-11-25T01:31:00Z"}


@dataclass
class Api:
    """Objects by path, and the states that a workflow goes through, one a question."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)
    refused: str = ""
    patches: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if self.refused and self.refused in path:
            return 403, {"message": f"you may not {method} {path}"}
        if method == "POST":
            return self.create(path, body)
        if method == "PATCH":
            self.patches.append((path, body))
            return 200, body
        if path.endswith("/log"):
            return 200, 'first line\ntime=x msg="capturing logs" argo=true\nsecond line\n'
        if path.endswith("/pods"):
            pod = {"name": "wf-pod", "annotations": {"workflows.argoproj.io/node-id": "wf-1"}}
            return 200, {"items": [{"metadata": pod}]}
        if path.endswith("/workflows"):
            wanted = query["labelSelector"][0].partition("=")[2]
            items = [
                item
                for item in self.objects.values()
                if item["metadata"].get("labels", {}).get("stagecoach/run") == wanted
            ]
            return 200, {"items": items}
        return self.read(path)

    def create(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        metadata = body["metadata"]
        metadata.setdefault("name", f"{metadata.get('generateName')}x7k2p")
        key = f"{path}/{metadata['name']}"
        if key in self.objects:
            return 409, {"message": "exists"}
        self.objects[key] = body
        return 201, body

    def read(self, path: str) -> tuple[int, Any]:
        found = self.objects.get(path)
        if found is None:
            return 404, {"message": "not found"}
        if "/workflows/" in path and self.states:
            found = {**found, "status": self.states.pop(0) if len(self.states) > 1 else self.states[0]}
        return 200, found

    def kinds(self) -> list[str]:
        return [document["kind"] for document in self.objects.values()]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The stand-in, and a KUBECONFIG that leads to it."""
    made = Api()

    class Handler(QuietHandler):
        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = made.answer(self.command, parts.path, parse_qs(parts.query), body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = handle_one

    with served(Handler) as address:
        _write_kubeconfig(tmp_path / "kubeconfig", address)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr("stagecoach_workflows.cli.following._POLL_SECONDS", 0.01)
        yield made


def _write_kubeconfig(file: Path, address: str) -> None:
    context = {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
    }
    file.write_text(yaml.safe_dump(values))


def state(phase: str, train: str, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "nodes": {"wf-1": {**TRAIN, "phase": train, **more}}}


def workflow(api: Api) -> dict[str, Any]:
    (found,) = (document for document in api.objects.values() if document["kind"] == "Workflow")
    return found


def test_submit_makes_template_and_workflow(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["submit", "micro", "--store", "s3://bucket"]) == 0
    assert api.kinds() == ["WorkflowTemplate", "Workflow"]
    spec = workflow(api)["spec"]
    parameters = {item["name"]: item["value"] for item in spec["arguments"]["parameters"]}
    assert parameters["store"] == "s3://bucket"
    assert re.fullmatch(r"[0-9]{8}T[0-9]{6}Z-micro-[0-9a-f]{4}", parameters["run"])
    assert workflow(api)["metadata"]["labels"] == {"stagecoach/run": parameters["run"].lower()}
    assert f"{ARGO}/workflowtemplates/{spec['workflowTemplateRef']['name']}" in api.objects
    assert f"run {parameters['run']}: workflow" in capfd.readouterr().out


def test_a_second_submit_leaves_the_template_and_no_submit_touches_the_alias(api: Api) -> None:
    """A schedule runs the alias: somebody's trial with other settings must not change what runs every night."""
    assert app(["submit", "micro"]) == 0
    before = dict(api.objects)
    assert app(["submit", "micro", "--run", "20261125T013000Z-again"]) == 78  # the stand-in gives one name twice
    assert api.patches == []
    assert f"{ARGO}/workflowtemplates/stagecoach-micro" not in api.objects
    assert api.objects == before


def test_submit_from_a_template_sends_settings_as_one_parameter(api: Api) -> None:
    assert app(["submit", "--from", "stagecoach-micro", "--set", "train.seed=7", "--set", "data.name=a b"]) == 0
    spec = workflow(api)["spec"]
    assert spec["workflowTemplateRef"] == {"name": "stagecoach-micro"}
    assert {"name": "set", "value": "train.seed=7 'data.name=a b'"} in spec["arguments"]["parameters"]


def test_wait_ends_with_the_runs_exit_code(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    message = "main: Error (exit code 79): row 3: no messages"
    api.states = [
        state("Running", "Running", progress="250/1000"),
        state("Failed", "Failed", outputs={"exitCode": "79"}, message=message),
    ]
    assert app(["submit", "micro", "--wait"]) == 79
    assert "row 3: no messages" in capfd.readouterr().out


def test_wait_is_patient_with_a_cluster_that_stumbles(api: Api) -> None:
    api.states = [state("Running", "Running"), state("Succeeded", "Succeeded")]
    answer = api.answer
    questions = 0

    def stumble(method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        nonlocal questions
        questions += "/workflows/" in path
        return (503, {"message": "starting"}) if questions == 2 else answer(method, path, query, body)

    api.answer = stumble  # type: ignore[method-assign]
    assert app(["submit", "micro", "--wait"]) == 0
    assert questions >= 3


def test_a_run_is_found_by_its_id_or_its_workflow(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["submit", "micro", "--run", "20261125T013000Z-micro-ab12"]) == 0
    name = workflow(api)["metadata"]["name"]
    api.states = [state("Running", "Running")]
    for run in ("20261125T013000Z-micro-ab12", name):
        assert app(["status", run]) == 0
        assert f"{name}: Running" in capfd.readouterr().out
    assert app(["status", "nobody"]) == 66


def test_logs_come_from_the_pods_of_the_tasks(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["submit", "micro", "--run", "20261125T013000Z-micro-ab12"]) == 0
    api.states = [state("Running", "Running")]
    capfd.readouterr()
    assert app(["logs", "20261125T013000Z-micro-ab12"]) == 0
    assert capfd.readouterr().out == "first line\nsecond line\n"
    assert app(["logs", "20261125T013000Z-micro-ab12", "--task", "pack"]) == 66


@pytest.mark.parametrize(("flags", "shutdown"), [([], "Stop"), (["--now"], "Terminate")])
def test_cancel_asks_the_workflow_to_end(api: Api, flags: list[str], shutdown: str) -> None:
    assert app(["submit", "micro", "--run", "20261125T013000Z-micro-ab12"]) == 0
    api.patches.clear()
    assert app(["cancel", "20261125T013000Z-micro-ab12", *flags]) == 0
    assert api.patches == [(f"{ARGO}/workflows/{workflow(api)['metadata']['name']}", {"spec": {"shutdown": shutdown}})]


def test_a_refusal_says_what_the_cluster_said(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    api.refused = "workflowtemplates"
    assert app(["submit", "micro"]) == 78
    assert "you may not POST" in capfd.readouterr().err


def test_no_cluster_is_said_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert app(["status", "x"]) == 78
    assert "expected a KUBECONFIG" in capfd.readouterr().err
