"""The command line of a containerised step; that it works is proven where there is Docker (tests/images)."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.docker import DockerLauncher
from stagecoach_workflows.engine import TaskRun
from stagecoach_workflows.interpret import Graph, read_workflow
from stagecoach_workflows.render import template_document
from tests.unit.stagecoach_workflows.recipes import small_recipe


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_workflow(template_document(small_recipe(), Deployment()))


def command(graph: Graph, tmp_path: Path, task: str, *, store: str = "file:///data/store", gpus: int = 0) -> list[str]:
    spec = next(found for found in graph.tasks if found.name == task)
    run = TaskRun(spec=spec, folder=tmp_path / "20261125T013000Z-small-ab12" / task, log=tmp_path / "log", attempt=1)
    launcher = DockerLauncher(store, gpus=gpus, extra_environ={"WORD": "hello"})
    return launcher.command(graph.step_of(spec), ("--store=x", "--run=y"), run)


def test_it_runs_the_stages_image_with_the_same_arguments(graph: Graph, tmp_path: Path) -> None:
    found = command(graph, tmp_path, "pack")
    assert found[-7:] == [
        "--entrypoint",
        "python",
        "ghcr.io/stagecoach/stagecoach-pack:0.1.0",
        "-m",
        "stagecoach_pack",
        "--store=x",
        "--run=y",
    ]


def test_a_stage_with_a_directory_store_has_no_network(graph: Graph, tmp_path: Path) -> None:
    assert _value(command(graph, tmp_path, "pack"), "--network") == "none"
    assert _value(command(graph, tmp_path, "train"), "--network") == "none"


@pytest.mark.parametrize("task", ["download-model", "download-data-a", "export", "plan"])
def test_what_asks_the_hub_has_a_network_and_the_token(graph: Graph, tmp_path: Path, task: str) -> None:
    found = command(graph, tmp_path, task)
    assert _value(found, "--network") == "host"
    assert "HF_TOKEN" in found


def test_other_stages_never_see_the_token(graph: Graph, tmp_path: Path) -> None:
    assert "HF_TOKEN" not in command(graph, tmp_path, "train")


def test_with_s3_every_stage_has_a_network(graph: Graph, tmp_path: Path) -> None:
    assert _value(command(graph, tmp_path, "pack", store="s3://bucket"), "--network") == "host"


def test_secrets_are_named_and_never_written_out(graph: Graph, tmp_path: Path) -> None:
    found = command(graph, tmp_path, "pack", store="s3://bucket")
    assert "AWS_SECRET_ACCESS_KEY" in found
    assert [part for part in found if part.startswith(("AWS_", "HF_", "WORD")) and "=" in part] == []


def test_train_gets_the_gpus_and_shared_memory(graph: Graph, tmp_path: Path) -> None:
    found = command(graph, tmp_path, "train", gpus=4)
    assert _value(found, "--gpus") == "4"
    assert _value(found, "--shm-size") == "16g"
    assert "--gpus" not in command(graph, tmp_path, "pack", gpus=4)


def test_the_root_is_read_only_and_the_store_is_mounted(graph: Graph, tmp_path: Path) -> None:
    found = command(graph, tmp_path, "pack")
    assert "--read-only" in found
    assert "/data/store:/data/store" in found
    assert _value(found, "--tmpfs").startswith("/tmp:")


def test_a_machine_without_docker_is_told_so(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = graph.tasks[0]
    run = TaskRun(spec=spec, folder=tmp_path, log=tmp_path / "log", attempt=1)
    with open(run.log, "wb") as log, pytest.raises(ConfigError, match="install Docker"):
        DockerLauncher("file:///x", gpus=0).start(graph.step_of(spec), (), run, log)


def _value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]
