"""What a cluster cannot give is said in one sentence before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError, StagecoachError
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.slurm.checks import check_tasks
from stagecoach_workflows.slurm.client import Node, Slurm
from stagecoach_workflows.slurm.config import SlurmConfig, load_slurm_config, time_seconds
from stagecoach_workflows.slurm.scripts import Scripts

DAY = 86400.0
NODES = [
    Node(name="n1", partition="main", is_default=True, cpus=64, memory_mib=256_000, max_seconds=4 * DAY),
    Node(
        name="g1",
        partition="gpu",
        is_default=False,
        cpus=64,
        memory_mib=256_000,
        gpus={"a100": 4},
        max_seconds=2 * DAY,
    ),
]
FITS = {"partition": "gpu", "time": "24:00:00"}


def check(train: dict[str, Any], **config: Any) -> None:
    values = SlurmConfig.model_validate({"tasks": {"train": train}, **config})
    scripts = Scripts.of(load_recipe("mistral-7b-4xa100"), Deployment(), values, "s3://stagecoach")
    check_tasks(scripts.tasks, values, NODES)


def test_what_fits_is_not_refused() -> None:
    check(FITS)


@pytest.mark.parametrize(
    ("train", "config", "sentence"),
    [
        ({**FITS, "partition": "gpuu"}, {}, r"train: expected a partition of this cluster \(gpu, main\), got 'gpuu'"),
        ({**FITS, "partition": None}, {}, "train: 4 GPUs are asked for, but a node of partition main has at most 0"),
        ({**FITS, "gpus": 8}, {}, "train: 8 GPUs are asked for, but a node of partition gpu has at most 4"),
        ({**FITS, "gpu_type": "h100"}, {}, "4 GPUs of type h100 are asked for, but a node of partition gpu has"),
        ({**FITS, "cpus": 65}, {}, "train: 65 cores are asked for"),
        ({**FITS, "memory_gib": 250.1}, {}, "train: 250.1 GiB of memory are asked for, .* has at most 250;"),
        (
            {**FITS, "partition": "gpu,main", "time": "5-00:00:00"},
            {},
            "more than the 96 hours of partition main; set `time` in slurm.yaml for train: train saves",
        ),
        ({**FITS, "partition": "gpu,main", "time": "3-00:00:00"}, {}, "1 nodes with 4 GPUs.*for 3-00:00:00.* has 0;"),
        ({"partition": "gpu"}, {}, "train: a time limit of 3-00:00:00 is more than the 48 hours of partition gpu"),
        (FITS, {"runtime": "apptainer", "images": "/nowhere"}, r"expected its image /nowhere/stagecoach-.*\.sif"),
    ],
)
def test_one_sentence_before_anything_starts(train: dict[str, Any], config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StagecoachError, match=sentence):
        check(train, **config)


def test_no_slurm_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--runner slurm: expected the program sbatch on PATH, found none"):
        Slurm()


@pytest.mark.parametrize("command", ["run", "submit"])
def test_without_slurm_nothing_is_made(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    work = tmp_path / "work"
    assert app([command, "micro", "--runner", "slurm", "--work", str(work)]) == 78
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected the program sbatch on PATH" in said
    assert not work.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partition: gpu", "partition: Extra inputs are not permitted"),
        ("tasks: {trian: {}}", "tasks.trian: expected one of download-model"),
        ("defaults: {account: 'a; rm -rf /'}", "defaults.account: Value error, expected a word without spaces"),
        ("defaults: {options: ['--wrap=$(id)']}", "defaults.options.0: Value error, expected an option of sbatch"),
        ("modules: ['cuda; id']", "modules.0: Value error, expected the name of a module"),
        ("defaults: {time: soon}", "defaults.time: Value error, expected a time"),
        ("environment: {'A B': x}", "environment: expected a variable's name, got 'A B'"),
        ("runtime: charliecloud", "images: expected a folder of unpacked images"),
        ("[1", "expected a readable YAML file"),
    ],
)
def test_a_bad_file_is_refused_by_field(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "slurm.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_slurm_config(file)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:30", 630), ("4:00:00", 14400), ("24:00:00", DAY), ("2-00:00:00", 2 * DAY), ("1-12", 1.5 * DAY)],
)
def test_times_are_read_as_slurm_reads_them(text: str, seconds: float) -> None:
    assert time_seconds(text) == seconds
