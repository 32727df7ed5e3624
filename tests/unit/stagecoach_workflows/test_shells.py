"""Every word of an interactive shell, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.shells import check_shell, docker_shell, slurm_shell
from stagecoach_workflows.slurm.client import Node
from stagecoach_workflows.slurm.config import SlurmConfig

HERE = Path("/repo")
NODES = [
    Node(name="n1", partition="main", is_default=True, cpus=4, memory_mib=4000, max_seconds=7200.0),
    Node(name="g1", partition="gpu", is_default=False, cpus=4, memory_mib=4000, gpus={"a100": 4}, max_seconds=7200.0),
]


def config(runtime: str = "none", **train: Any) -> SlurmConfig:
    return SlurmConfig.model_validate({"runtime": runtime, "images": "/images", "tasks": {"train": train}})


@pytest.mark.parametrize("num_gpus", [0, 2])
def test_docker_runs_as_the_user_in_the_repository(num_gpus: int) -> None:
    words = docker_shell("stagecoach-train:1", HERE, num_gpus)
    assert words[:7] == ["docker", "run", "--rm", "--interactive", "--tty", "--user", f"{os.getuid()}:{os.getgid()}"]
    assert words[words.index("--volume") + 1] == "/repo:/repo"
    assert words[words.index("--workdir") + 1] == "/repo"
    assert ("--gpus" in words) == bool(num_gpus)
    assert words[-3:] == ["--entrypoint", "bash", "stagecoach-train:1"]


def test_slurm_asks_for_what_the_stage_has_there() -> None:
    options: dict[str, Any] = {
        "partition": "gpu",
        "gpus": 2,
        "gpu_type": "a100",
        "time": "2:00:00",
        "memory_gib": 1.5,
        "cpus": 3,
    }
    assert slurm_shell("train", "r/stagecoach-train:1", HERE, config(**options)) == [
        *("srun", "--pty", "--job-name=stagecoach-shell-train", "--chdir=/repo", "--nodes=1", "--ntasks=1"),
        "--time=2:00:00",
        *("--cpus-per-task=3", "--mem=1536M", "--gres=gpu:a100:2", "--partition=gpu", "bash"),
    ]


@pytest.mark.parametrize(
    ("runtime", "ending"),
    [
        ("apptainer", "apptainer exec --bind /repo:/repo --pwd /repo /images/stagecoach-train.sif bash"),
        ("charliecloud", "ch-run --write --set-env --bind=/repo:/repo --cd=/repo /images/stagecoach-train -- bash"),
        (
            "podman",
            "--tty --user=0 --network=host --volume=/repo:/repo --workdir=/repo --entrypoint=bash r/stagecoach-train:1",
        ),
    ],
)
def test_slurm_opens_the_container(runtime: str, ending: str) -> None:
    assert " ".join(slurm_shell("train", "r/stagecoach-train:1", HERE, config(runtime))).endswith(ending)


@pytest.mark.parametrize("runtime", ["none", "podman"])
def test_slurm_gives_a_shell_what_every_job_gets(runtime: str) -> None:
    values = {"modules": ["cuda/12.8", "gcc"], "environment": {"A": "b c"}, "defaults": {"exclusive": True}}
    words = slurm_shell("train", "i", HERE, SlurmConfig.model_validate({"runtime": runtime, **values}))
    assert "--exclusive" in words
    start = words.index("env")
    assert words[start + 1 : start + 4] == ["A=b c", "bash", "-c"]
    assert ("--env=A" in words) == (runtime == "podman")
    for status, said in ((0, "cuda/12.8 gcc b c\n"), (1, "")):
        module = f'module() {{ printf "%s " "$2"; return {status}; }}; export -f module; "$@"'
        ran = [*words[start : start + 6], "sh", "-c", "echo $A"]
        done = subprocess.run(["bash", "-c", module, "bash", *ran], capture_output=True, text=True, check=False)
        assert done.returncode == (78 if status else 0)
        assert not said or done.stdout == said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"partition": "gpuu"}, r"train: expected a partition of this cluster \(gpu, main\), got 'gpuu'"),
        (
            {"gpus": 1},
            "train: 1 GPUs are asked for, but a node of partition main has at most 0; correct",
        ),
        ({"partition": "gpu", "gpus": 8}, "has at most 4"),
        ({"partition": "gpu", "gpus": 1, "gpu_type": "h100"}, "has at most 0"),
        ({"partition": "main,gpuu"}, r"train: expected a partition of this cluster \(gpu, main\), got 'gpuu'"),
        ({"partition": "main,gpu", "gpus": 8}, "has at most 4"),
        ({"cpus": 5}, "train: 5 cores are asked for, but a node of partition main has at most 4; set cpus"),
        ({"memory_gib": 4}, "train: 4 GiB of memory are asked for, but a node of partition main has at most 3.9"),
        (
            {"time": "3:00:00"},
            "a time limit of 3:00:00 is more than the 2 hours of partition main; set `time` in slurm",
        ),
    ],
)
def test_what_no_node_has(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_shell("train", config(**options), NODES)


@pytest.mark.parametrize("partition", ["gpu", "main,gpu"])
def test_what_a_node_of_one_of_the_partitions_has_is_there(partition: str) -> None:
    check_shell("train", config(partition=partition, gpus=4), NODES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--stage", "trian"), "image 'trian': expected one of"),
        (("--folder", "/no/such/folder"), "--folder: expected a directory"),
        ((), "expected a `docker` program on PATH"),
        (("--runner", "slurm"), "expected the program sbatch on PATH"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert app(["shell", *arguments]) == 78
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
