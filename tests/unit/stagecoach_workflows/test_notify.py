"""The exit hook: what it records, whom it tells, and that nothing makes it fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.paths import finished_prefix, plan_key
from stagecoach.records import read_numbered, write_record
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.notify import Ending, ending, main, tell
from stagecoach_workflows.plan import make_plan
from tests.loopback import QuietHandler, served
from tests.unit.stagecoach_workflows.recipes import small_recipe

RUN = "20261125T013000Z-small-ab12"
COMMIT = "team/project@" + "0123456789" * 4
Received = list[tuple[str, dict[str, str], dict[str, Any]]]


@pytest.fixture
def server() -> Iterator[tuple[str, Received]]:
    """A web server that keeps what is posted to it: path, headers, JSON."""
    received: Received = []

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()

    with served(Handler) as address:
        yield address, received


def plan(store: MemoryStore | LocalStore) -> None:
    made = make_plan(small_recipe(), store, Settings(), RUN)
    store.put(plan_key(RUN), made.model_dump_json().encode())


def end(status: str = "Failed", **more: Any) -> Ending:
    return Ending(run_id=RUN, recipe="small", workflow="wf", namespace="ns", status=status, **more)


def test_a_failed_run_is_explained_by_the_tasks_own_record() -> None:
    store = MemoryStore("test")
    plan(store)
    write_record(store, RUN, "pack", {"state": "failed", "exit_code": 79, "message": "row 3: no messages"})
    found = ending(store, RUN, status="Failed", workflow="wf", namespace="ns")
    assert (found.failed_task, found.exit_code) == ("pack", 79)
    assert found.sentence() == f"small {RUN} failed in pack: row 3: no messages"


def test_a_task_that_failed_and_was_done_in_the_end_is_not_blamed() -> None:
    store = MemoryStore("test")
    plan(store)
    write_record(store, RUN, "pack", {"state": "failed", "exit_code": 75})
    write_record(store, RUN, "pack", {"state": "done"})
    assert ending(store, RUN, status="Failed", workflow="wf", namespace="ns").failed_task is None


def test_a_run_without_a_plan_failed_in_plan() -> None:
    found = ending(MemoryStore("test"), RUN, status="Failed", workflow="wf", namespace="ns")
    assert found.failed_task == "plan"


def test_everybody_in_the_folder_is_told(tmp_path: Path, server: tuple[str, Received]) -> None:
    address, received = server
    for name, value in {
        "webhook-url": f"{address}/hook",
        "slack-webhook-url": f"{address}/slack",
        "github-token": "secret",
        "github-api-url": f"{address}/api/",
    }.items():
        (tmp_path / name).write_text(value + "\n")
    assert tell(tmp_path, end(message="boom"), COMMIT) == ["webhook", "Slack", "GitHub"]
    hook, slack, github = received
    assert hook[2]["run_id"] == RUN
    assert slack[2] == {"text": f"small {RUN} failed: boom"}
    assert github[0] == f"/api/repos/team/project/statuses/{'0123456789' * 4}"
    assert (github[1]["Authorization"], github[2]["state"]) == ("Bearer secret", "failure")


def test_nobody_is_told_where_nothing_is_mounted(tmp_path: Path) -> None:
    assert tell(tmp_path / "absent", end(), COMMIT) == []


def test_a_receiver_that_fails_is_left_out_and_its_address_not_shown(
    tmp_path: Path, server: tuple[str, Received], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "webhook-url").write_text(f"{server[0]}/broken-secret")
    assert tell(tmp_path, end(), "") == []
    assert "webhook was not told" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "commit", ["", "team/project", "team/project@main", "../../x@" + "a" * 40, "a/b/c@" + "a" * 40]
)
def test_only_a_whole_commit_gets_a_status(tmp_path: Path, commit: str) -> None:
    (tmp_path / "github-token").write_text("secret")
    (tmp_path / "github-api-url").write_text("http://127.0.0.1:9")
    assert tell(tmp_path, end(), commit) == []


def test_the_end_is_recorded_in_the_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan(store)
    assert main(["--store", str(tmp_path), "--workflow", "wf", "--run", RUN, "--status", "Succeeded"]) == 0
    (record,) = read_numbered(store, finished_prefix(RUN)).values()
    assert (record["state"], record["exit_code"], record["runner"]) == ("succeeded", 0, "argo")


@pytest.mark.parametrize("url", ["s3://[", "http://x", ""])
def test_nothing_makes_it_fail(url: str) -> None:
    assert main(["--store", url, "--workflow", "wf", "--status", "Failed"]) == 0
