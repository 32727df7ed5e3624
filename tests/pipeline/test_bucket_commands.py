"""Every command over the bucket says the same of a directory and of an S3 server that hold the same run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.cli.main import app
from stagecoach_workflows.plan import plan_run
from stagecoach_workflows.recipes_shipped import load_recipe
from tests.micro_run import RUN, TASKS, MicroWork
from tests.seaweed import SeaweedServer

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once

AGAIN = f"{RUN}-again"


@pytest.fixture(scope="module")
def stores(
    micro: MicroWork, seaweed: SeaweedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalStore, ObjectStore]]:
    """The micro run and one that found everything done, in a directory and in a bucket."""
    with pytest.MonkeyPatch.context() as environ:
        seaweed.use(environ)
        bucket = seaweed.store()
        folder = LocalStore(tmp_path_factory.mktemp("same"))
        for info in micro.store.list(""):
            for store in (folder, bucket):
                store.put(info.key, micro.store.get(info.key))
        plan_run(load_recipe("micro"), folder, Settings(), AGAIN)
        for info in list(folder.list(f"runs/{AGAIN}/")):
            bucket.put(info.key, folder.get(info.key))
        yield folder, bucket


def says(store: ObjectStore, capfd: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    """Run a command and return its exit code and what it printed, without addresses and ages."""
    capfd.readouterr()
    code = app([*command, "--store", store.url])
    captured = capfd.readouterr()
    text = (captured.out + captured.err).replace(store.url.rstrip("/"), "STORE")
    return code, re.sub(r'("age_seconds": )[\d.]+', r"\1_", text)


@pytest.mark.parametrize(
    "command",
    [
        ("ls", "--json"),
        ("ls", "--limit", "1", "--json"),
        ("ls", "--since", "2027", "--json"),
        ("show", RUN, "--json"),
        ("show", RUN),
        ("show", f"{RUN}-none"),
        ("compare", RUN, AGAIN, "--json"),
        ("compare", RUN, AGAIN),
        ("verify", "--json"),
        ("verify",),
        ("gc", "--keep", "0", "--json"),
        ("gc", "--keep", "0"),
        ("releases", "--json"),
        ("rollback", "nobody"),
        ("logs", RUN),
        ("logs", RUN, "--task", "train", "--json"),
        ("logs", RUN, "--task", "nothing"),
        ("logs", AGAIN),
        ("lineage", "exports/none/"),
    ],
    ids=" ".join,
)
def test_a_command_says_the_same_of_both(
    stores: tuple[LocalStore, ObjectStore], capfd: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    left, right = (says(store, capfd, *command) for store in stores)
    assert left == right
    assert left[1]


def test_lineage_and_report_are_the_same_of_both(
    stores: tuple[LocalStore, ObjectStore], micro: MicroWork, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export = micro.plan().task("export").output
    pages = []
    for store in stores:
        code, text = says(store, capfd, "lineage", export, "--json")
        assert code == 0
        assert {node["task"] for node in _nodes(json.loads(text))} == set(TASKS)
        assert says(store, capfd, "report", RUN, "-o", str(tmp_path / "page.html"))[0] == 0
        pages.append((text, (tmp_path / "page.html").read_text().replace(store.url.rstrip("/"), "STORE")))
    assert pages[0] == pages[1]


def _nodes(node: dict[str, list[dict[str, str]]]) -> Iterator[dict[str, object]]:
    yield dict(node)
    for child in node["inputs"]:
        yield from _nodes(child)  # type: ignore[arg-type]


def test_the_log_of_every_task_is_in_the_bucket(micro: MicroWork, capfd: pytest.CaptureFixture[str]) -> None:
    for task in TASKS:
        code, text = says(micro.store, capfd, "logs", RUN, "--task", task)
        assert code == 0
        assert text == micro.log(task).replace(micro.store.url.rstrip("/"), "STORE")


def test_what_killed_attempts_wrote_is_in_the_bucket(
    micro: MicroWork, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL to a training some time after its first chunk; the next attempt's log does not hide it."""
    work = micro.copy_without(tmp_path, ["train", "export"])
    arguments = ("--set", "train.steps=2000", "--set", "train.log_every_steps=1")
    process = subprocess.Popen(
        work.command(*arguments), env=work.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not list(work.store.list(f"runs/{RUN}/logs/train/")) and time.monotonic() < limit:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, text = says(work.store, capfd, "logs", RUN, "--task", "train", "--attempt", "1")
    assert code == 0
    assert "attempt 1, from the start" in text
