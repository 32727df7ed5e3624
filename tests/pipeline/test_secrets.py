"""Secrets planted wherever they could leak from; afterwards they are looked for in everything that was written or said."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest

from stagecoach import last_words
from stagecoach.contract import stage_main
from stagecoach_workflows import notify
from stagecoach_workflows.cli.main import app
from tests.loopback import QuietHandler, served
from tests.micro_run import RUN, MicroWork
from tests.planted_secrets import SECRETS

pytestmark = pytest.mark.xdist_group("micro")  # one process, so that the run that they share is made once

LEAKS = (
    "no route to https://me:PLANTEDuserinfo@host/x",
    "GET /b/k?X-Amz-Signature=PLANTEDsignature&X-Amz-Security-Token=PLANTEDquery",
    "headers {'Authorization': 'Bearer PLANTEDbearer'}",
    "posting to https://hooks.slack.com/services/PLANTED/slack",
    *(f"{name} is {value}" for name, value in SECRETS.items()),
)
"""What other libraries put into the texts of their errors."""
MARK = b"PLANTED"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them in the environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("STAGECOACH_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(last_words, "TERMINATION_LOG", tmp_path / "termination-log")


def assert_nowhere(*folders: Path, said: str = "") -> int:
    """No file below the folders holds a planted secret, and neither does what was said; returns the number of files."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert [str(path) for path in files if MARK in path.read_bytes()] == []
    assert MARK.decode() not in said
    return len(files)


def test_a_whole_run_writes_none_of_them(micro: MicroWork) -> None:
    """Plan, manifests, records, metrics, logs, artifacts and the report of the run that all tests share."""
    assert assert_nowhere(micro.folder) > 100
    assert list(micro.folder.rglob("report.html"))
    assert list(micro.folder.rglob("*.log"))


@pytest.mark.parametrize("leak", LEAKS, ids=[leak[:24] for leak in LEAKS])
def test_the_error_of_another_library(
    leak: str, micro: MicroWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bug that nobody expects: traceback, log, task record, and what Kubernetes shows."""
    copy = micro.copy_without(tmp_path / "work", ["pack"])
    plan = tmp_path / "work/store/runs" / RUN / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_bytes((micro.folder / "store/runs" / RUN / "plan.json").read_bytes())

    def run(*arguments: Any) -> None:
        logging.getLogger("urllib3").warning("retrying after %s", leak)
        try:
            raise OSError(leak)
        except OSError as error:
            raise RuntimeError(f"wrapped: {leak}") from error

    monkeypatch.setattr(importlib.import_module("stagecoach_pack.run"), "run", run)
    assert stage_main("pack", ["--store", str(copy.folder / "store"), "--run", RUN, "--task", "pack"]) == 70
    said = capfd.readouterr()
    assert "RuntimeError: wrapped: " in said.err
    assert "retrying after" in said.err
    assert "***" in said.err
    assert (copy.folder / "store/runs" / RUN / "pack/0002.json").is_file()
    assert_nowhere(tmp_path, said=said.out + said.err)


class _Echo(QuietHandler):
    """A server that answers 403 and 500 with everything it was told, as debugging proxies do."""

    def _answer(self) -> None:
        code, status = ("AccessDenied", 403) if self.command == "GET" else ("Unknown", 400)
        secrets = " ".join([str(self.headers), *SECRETS.values(), *LEAKS])
        text = secrets.replace("&", "&amp;").replace("<", "&lt;")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer


def test_a_store_that_repeats_what_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(_Echo) as url:
        monkeypatch.setenv("STAGECOACH_S3_ENDPOINT_URL", url)
        for arguments in (
            ["ls", "--store", "s3://bucket/x"],
            ["check", "micro", "--store", "s3://bucket/x"],
            ["show", RUN, "--store", "s3://bucket/x"],
            ["--debug", "show", RUN, "--store", "s3://bucket/x"],
            ["gc", "--keep", "1", "--store", "s3://bucket/x"],
        ):
            assert app(arguments) in (70, 78), arguments
        assert stage_main("pack", ["--store", "s3://bucket/x", "--run", RUN]) in (70, 78)
    said = capfd.readouterr()
    assert "s3://bucket/x" in said.err
    assert_nowhere(tmp_path, said=said.out + said.err)


def test_a_hub_that_repeats_what_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = '{"name": "m", "source": {"kind": "hub", "repo": "owner/name"}}'
    with served(_Echo) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        code = app(["--debug", "check", "micro", "--set", f"model={model}", "--work", str(tmp_path / "work")])
    said = capfd.readouterr()
    assert code in (66, 69, 78), said.err
    assert "owner/name" in said.err
    assert_nowhere(tmp_path, said=said.out + said.err)


def test_addresses_with_secrets_that_a_user_types(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for store in ("s3://me:PLANTED@bucket/x", "https://me:PLANTED@host/x", "s3://bucket/x?token=PLANTED"):
        assert app(["check", "micro", "--store", store]) == 78
    source = '{"kind": "s3", "url": "s3://me:PLANTED@bucket/x"}'
    assert app(["check", "micro", "--set", f"data.sources.0.source={source}", "--work", str(tmp_path / "w")]) == 78
    said = capfd.readouterr()
    assert said.err.count("***") == 4
    assert_nowhere(tmp_path, said=said.out + said.err)


def test_the_exit_hook_never_shows_whom_it_tells(
    micro: MicroWork, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = micro.copy_without(tmp_path / "work", [])
    folder = tmp_path.parent / f"{tmp_path.name}-secrets"
    folder.mkdir()
    with served(_Echo) as url:
        (folder / "webhook-url").write_text(f"{url}/hook/PLANTEDhook?token=PLANTEDquery")
        (folder / "slack-webhook-url").write_text("http://127.0.0.1:9/services/PLANTED/slack")
        (folder / "github-api-url").write_text(url)
        (folder / "github-token").write_text("ghp_PLANTEDgithub0123456789")
        arguments = ["--store", str(copy.folder / "store"), "--workflow", "w", "--status", "Failed", "--run", RUN]
        arguments += ["--commit", f"owner/name@{'0' * 40}", "--secrets", str(folder)]
        assert notify.main(arguments) == 0
    said = capfd.readouterr()
    assert said.err.count("was not told") == 3
    assert_nowhere(tmp_path, said=said.out + said.err)


def test_manifests_for_clusters_hold_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app(["render", "micro", "--cron", "0 1 * * *", "--output", str(tmp_path / "argo.yaml")]) == 0
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text("{}\n")
    code = app(["render", "micro", "--runner", "slurm", "--output", str(tmp_path / "slurm"), "--slurm", str(slurm)])
    said = capfd.readouterr()
    assert code in (0, 78), said.err
    assert assert_nowhere(tmp_path, said=said.out + said.err) >= 2


def test_a_log_line_that_would_leak_is_seen_by_this_test(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x PLANTED y")
    with pytest.raises(AssertionError):
        assert_nowhere(tmp_path)
