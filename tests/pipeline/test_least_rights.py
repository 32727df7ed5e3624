"""The IAM policy of docs/operations.md on a server that enforces it: enough for everything, and nothing in it too much."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import StoreDenied
from stagecoach.settings import Settings, child_environ
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.cli.main import app
from tests.micro_run import RUN, WAIT_SECONDS
from tests.seaweed import Restartable, restartable_seaweed

pytestmark = pytest.mark.xdist_group("rights")  # one process, so that the run that they share is made once

STORE = "s3://stagecoach/llm"
ACTIONS = ("ListBucket", "ListBucketMultipartUploads", "GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload")
READER = ("ListBucket", "GetObject")


def documented_policy() -> dict[str, Any]:
    """The policy as the page has it, for the bucket and prefix of this test."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(\{\"Version\".*?)```", page, re.DOTALL)
    found: dict[str, Any] = json.loads(text.replace("BUCKET", "stagecoach").replace("PREFIX", "llm"))
    return found


def policy_of(actions: set[str]) -> str:
    policy = documented_policy()
    for statement in policy["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action.removeprefix("s3:") in actions]
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
    return json.dumps(policy)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    """A server with a user that has the policy, one for each action that lacks it, and a reader."""
    policies = {f"no-{action.lower()}": policy_of({*ACTIONS} - {action}) for action in ACTIONS}
    policies |= {"stage": json.dumps(documented_policy()), "reader": policy_of({*READER})}
    with restartable_seaweed(tmp_path_factory.mktemp("rights") / "server", policies) as made:
        yield made


@pytest.fixture
def be(server: Restartable, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ObjectStore]:
    """Makes this process one of the users."""

    def become(user: str) -> ObjectStore:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        for name, value in server.user_environ(user).items():
            monkeypatch.setenv(name, value)
        return open_store(STORE, Settings.from_environ())

    return become


@pytest.fixture(scope="module")
def run(server: Restartable, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The micro recipe from end to end with the documented rights alone."""
    words = ["run", "micro", "--store", STORE, "--run", RUN, "--work", str(tmp_path_factory.mktemp("work"))]
    words += ["--retries", "0", "--set", "export.release=chat"]
    environ = child_environ(**server.user_environ("stage"), AWS_SESSION_TOKEN=None, OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "stagecoach_workflows", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_policy_names_the_actions_of_this_test() -> None:
    named = [action for statement in documented_policy()["Statement"] for action in statement["Action"]]
    assert sorted(named) == sorted(f"s3:{action}" for action in ACTIONS)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "command",
    [
        "ls",
        f"show {RUN}",
        f"compare {RUN} {RUN}",
        f"logs {RUN}",
        f"report {RUN} -o /dev/null",
        "verify",
        "releases",
        "gc --keep 0 --delete",
        "doctor",
        f"export {RUN} --iteration 0",
    ],
)
def test_it_is_enough_for(
    command: str, be: Callable[[str], ObjectStore], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be("stage")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert app([*command.split(), "--store", STORE]) == 0, capfd.readouterr()


@pytest.mark.usefixtures("run")
def test_a_reader_sees_everything_and_changes_nothing(
    be: Callable[[str], ObjectStore], capfd: pytest.CaptureFixture[str]
) -> None:
    store = be("reader")
    for command in ("ls", f"show {RUN}", f"logs {RUN}", "verify", "releases chat", f"report {RUN} -o /dev/null"):
        assert app([*command.split(), "--store", STORE]) == 0, capfd.readouterr()
    with pytest.raises(StoreDenied):
        store.put("releases/chat/0002.json", b"{}")
    with pytest.raises(StoreDenied):
        store.delete([f"runs/{RUN}/plan.json"])


def test_it_ends_at_the_prefix(be: Callable[[str], ObjectStore]) -> None:
    be("stage")
    others = open_store("s3://stagecoach/theirs", Settings.from_environ())
    for attempt in (lambda: others.put("x", b"1"), lambda: others.get("x"), lambda: others.delete(["x"])):
        with pytest.raises(StoreDenied):
            attempt()


# Without AbortMultipartUpload the server still lets the owner of PutObject abort; AWS asks for it.
@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "AbortMultipartUpload"])
def test_without_one_of_its_actions_something_is_refused(
    action: str, be: Callable[[str], ObjectStore], tmp_path: Path
) -> None:
    whole = be("stage")
    whole.put("there", b"1")
    (tmp_path / "large").write_bytes(b"\0" * (20 << 20))
    store = be(f"no-{action.lower()}")
    needs: dict[str, Callable[[], Any]] = {
        "ListBucket": lambda: list(store.list("")),
        "ListBucketMultipartUploads": lambda: list(store.unfinished()),
        "GetObject": lambda: store.get("there"),
        "PutObject": lambda: store.put_file("large", tmp_path / "large"),
        "DeleteObject": lambda: store.delete(["there"]),
    }
    with pytest.raises(StoreDenied):
        needs.pop(action)()
    for work in needs.values():
        work()
