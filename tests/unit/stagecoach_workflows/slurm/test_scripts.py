"""The batch scripts are what a SLURM cluster gets: compared with committed files, and with the shell's own parser."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

import stagecoach_workflows
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.policy import RETRY_EXIT_CODES
from stagecoach_workflows.recipes_shipped import load_recipe
from stagecoach_workflows.slurm.config import SlurmConfig, load_slurm_config
from stagecoach_workflows.slurm.runtime import image_name
from stagecoach_workflows.slurm.scripts import Scripts
from tests.architecture.source_tree import ROOT
from tests.unit.stagecoach_workflows.recipes import small_recipe

GOLDEN = ROOT / "tests/golden/slurm"
EXAMPLE = Path(stagecoach_workflows.__path__[0]) / "recipes/slurm/4xa100.yaml"


def scripts(recipe: str, config: SlurmConfig) -> Scripts:
    return Scripts.of(load_recipe(recipe), Deployment(), config, "s3://stagecoach")


def scripts_of(name: str) -> Scripts:
    """The scripts of a golden folder."""
    if name == "mistral-7b-4xa100":
        return scripts(name, load_slurm_config(EXAMPLE))
    return scripts("micro", SlurmConfig())


@pytest.mark.parametrize("name", ["mistral-7b-4xa100", "micro"])
def test_the_scripts_are_the_committed_ones(name: str, request: pytest.FixtureRequest) -> None:
    files = {file: text for file, text in scripts_of(name).files.items() if file != "recipe.base64"}
    if request.config.getoption("--regenerate"):
        (GOLDEN / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (GOLDEN / name / file).write_text(text)
    committed = {file.name: file.read_text() for file in (GOLDEN / name).iterdir()}
    assert committed == files, "STAGECOACH_REGENERATE=1 writes them anew; look at the diff"


@pytest.mark.parametrize("runtime", ["none", "apptainer", "charliecloud", "podman"])
def test_the_shell_can_read_every_script(runtime: str, tmp_path: Path) -> None:
    config = SlurmConfig.model_validate({"runtime": runtime, "images": "/images with a space"})
    recipe = small_recipe("train.nodes=2", "train.layout.data_parallel=2")
    Scripts.of(recipe, Deployment(), config, "file:///a store").write(tmp_path)
    for file in tmp_path.iterdir():
        if file.suffix != ".base64":
            subprocess.run(["bash", "-n", str(file)], check=True)


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    made = scripts("micro", SlurmConfig())
    dead, live = tmp_path / ".train.sbatch.4711.new", tmp_path / ".train.sbatch.4712.new"
    for file in (dead, live):
        file.write_text("half")
    os.utime(dead, (time.time() - 7200,) * 2)
    made.write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*made.files, live.name}


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, text: str, **_: object) -> None:
        file.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        scripts("micro", SlurmConfig()).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_retry_table_is_the_workflows_own() -> None:
    train = scripts("micro", SlurmConfig()).files["train.sbatch"]
    assert f"^({'|'.join(str(code) for code in RETRY_EXIT_CODES)})$" in train
    assert "$failures -le 12 " in train


def test_several_nodes_meet_at_the_first_one() -> None:
    recipe = small_recipe("train.nodes=2", "train.layout.data_parallel=2")
    train = Scripts.of(recipe, Deployment(), SlurmConfig(), "s3://stagecoach").files["train.sbatch"]
    assert "#SBATCH --nodes=2" in train
    assert 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)' in train


@pytest.mark.parametrize(
    ("runtime", "folder", "is_looked_for"),
    [
        ("podman", None, True),
        ("charliecloud", "/images", True),
        ("apptainer", "/images", True),
        ("apptainer", None, False),
        ("none", None, False),
    ],
)
def test_the_probe_looks_for_every_image(runtime: str, folder: str | None, is_looked_for: bool) -> None:
    config = SlurmConfig.model_validate({"runtime": runtime, "images": folder})
    made = scripts("micro", config)
    images = {image_name(task.step.image, config) for task in made.tasks}
    assert len(images) >= 7
    looked_for = made.files["probe.sbatch"].partition("for image in ")[2].partition(";")[0].split()
    assert set(looked_for) == (images if is_looked_for else set())


def test_an_image_that_a_node_does_not_see_is_named_by_the_probe(tmp_path: Path) -> None:
    config = SlurmConfig.model_validate({"runtime": "charliecloud", "images": tmp_path / "no images"})
    Scripts.of(load_recipe("micro"), Deployment(), config, "s3://stagecoach").write(tmp_path)
    command = ["bash", str(tmp_path / "probe.sbatch"), "run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 66
    assert f"image {tmp_path}/no images/stagecoach-" in done.stderr and "is not on this node" in done.stderr
    assert (tmp_path / "probe" / "exit").read_text() == "66\n"


def test_podman_writes_as_the_user_outside() -> None:
    """The image's own user owns none of the folders that are mounted."""
    train = scripts("micro", SlurmConfig(runtime="podman")).files["train.sbatch"]
    assert " --user=0 " in train and "--userns" not in train
