"""A checkpoint of a run that is still training becomes a model that loads; the run goes on and ends as it would have."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from stagecoach.manifest import read_manifest
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.bucket.checkpoints import committed
from stagecoach_workflows.bucket.verify import verify_output
from stagecoach_workflows.cli.main import app
from tests.micro_run import RUN, MicroWork

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once

STEPS = 600


@pytest.fixture
def training(micro: MicroWork, tmp_path: Path) -> MicroWork:
    """A store in which all but the training of many more steps is done."""
    return micro.copy_without(tmp_path, ["train", "export"])


def exported(store: LocalStore, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, int]:
    """Run the command and return the folder that it names, and the iteration in it."""
    capfd.readouterr()
    assert app(["export", RUN, "--store", store.url, *arguments]) == 0, capfd.readouterr().err
    folder = capfd.readouterr().out.strip().removeprefix(store.url.rstrip("/") + "/")
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert verify_output(store, folder) == []
    return folder, int(manifest.summary["iteration"])


def test_a_run_that_is_still_training(training: MicroWork, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = (
        f"train.steps={STEPS}",
        "train.save_every_steps=5",
        "train.evaluate_every_steps=5",
        "train.keep_last=999",
    )
    process = subprocess.Popen(
        training.command(*(word for argument in arguments for word in ("--set", argument))),
        env=training.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    store = training.store
    limit = time.monotonic() + 120
    trained = ""
    while time.monotonic() < limit and process.poll() is None and (not trained or len(committed(store, trained)) < 2):
        if (store.root / "runs" / RUN / "plan.json").exists():
            trained = training.plan().task("train").output
        time.sleep(0.02)

    first = committed(store, trained)[0].iteration
    by_number, number = exported(store, capfd, "--iteration", str(first))
    newest, newer = exported(store, capfd, "--iteration", "last")
    best, _ = exported(store, capfd, "--iteration", "best")
    assert process.poll() is None, "the training ended before the exports did"
    assert (number, newer > first) == (first, True)
    assert app(["export", RUN, "--store", store.url, "--iteration", "7"]) == 66
    assert "its training keeps" in capfd.readouterr().err

    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    final = training.plan().task("export").output
    assert len({by_number, newest, final}) == 3
    assert best != final
    assert training.manifest("export") is not None
    finished, iteration = exported(store, capfd, "--iteration", str(first))
    assert iteration == first
    assert finished != by_number, "the key of a checkpoint says which attempt made it"
    weights = [
        next(entry.sha256 for name, entry in manifest.objects.items() if name.endswith(".safetensors"))
        for manifest in (read_manifest(store, by_number), read_manifest(store, finished))
        if manifest is not None
    ]
    assert weights[0] == weights[1]


def test_an_iteration_that_says_nothing(micro: MicroWork, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["export", RUN, "--store", micro.store.url, "--iteration", "newest"]) == 78
    assert "--iteration: expected a number, last or best, got 'newest'" in capfd.readouterr().err
