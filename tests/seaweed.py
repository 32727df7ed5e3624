"""A real S3 server for tests: the one that ``--store s3`` starts, with what tests want to know about it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage.s3 import S3Options, S3Store
from stagecoach.storage.transfer import RetryPolicy
from stagecoach_workflows import local_s3
from stagecoach_workflows.local_s3 import S3Server, running_s3_server
from tests.faulty_s3 import FaultyS3, faulty_s3

PART_BYTES = 5 * 1024 * 1024
QUICK = RetryPolicy(max_tries=4, first_pause_seconds=0.01)


@dataclass(frozen=True, slots=True)
class SeaweedServer:
    """A server that runs, and its data."""

    server: S3Server
    data_dir: Path

    @property
    def url(self) -> str:
        """The address of its bucket."""
        return f"s3://{self.server.bucket}"

    def environ(self) -> dict[str, str]:
        """The variables with which a process finds it."""
        return self.server.environ()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set those variables in this process, without any AWS profile that the machine may have."""
        for name in (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "HTTP_PROXY",
            "http_proxy",
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environ().items():
            monkeypatch.setenv(name, value)

    def store(self, prefix: str | None = None, **options: Any) -> S3Store:
        """Open a store under a prefix, a fresh one if none is given; the process must ``use`` the server."""
        prefix = f"t-{secrets.token_hex(6)}" if prefix is None else prefix
        return S3Store(
            self.server.bucket, prefix, S3Options(endpoint_url=self.server.endpoint_url, addressing="path", **options)
        )


@contextmanager
def start_seaweed(data_dir: Path) -> Iterator[SeaweedServer]:
    """Run a server for the time of the block; its data stay in ``data_dir``."""
    with running_s3_server(data_dir) as server:
        yield SeaweedServer(server, data_dir)


@contextmanager
def failing(server: SeaweedServer, **options: Any) -> Iterator[tuple[S3Store, FaultyS3]]:
    """A store behind a proxy that lets everything pass until the test gives it a script."""
    with faulty_s3(server.server.endpoint_url, lambda request: None) as proxy:
        settings: dict[str, Any] = {"retry": QUICK, "part_bytes": PART_BYTES, "read_timeout_seconds": 20.0, **options}
        store = S3Store(
            server.server.bucket,
            f"t-{os.urandom(6).hex()}",
            S3Options(endpoint_url=proxy.endpoint_url, addressing="path", **settings),
        )
        store.put("warm", b"")
        proxy.requests.clear()
        yield store, proxy
        store.close()


def big_file(folder: Path, num_parts: float) -> tuple[Path, str]:
    """Write a file of so many parts and return it with its sha256."""
    path = folder / "big"
    path.write_bytes(os.urandom(int(num_parts * PART_BYTES)))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(slots=True)
class Restartable:
    """A server that a test can stop, start again on its ports, and let stand still."""

    server: S3Server
    data_dir: Path
    run_dir: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    def environ(self) -> dict[str, str]:
        """The variables with which a process finds it."""
        return self.server.environ()

    def user_environ(self, user: str) -> dict[str, str]:
        """The variables with which a process finds it as one of the users whose policies it was given."""
        return {**self.environ(), "AWS_ACCESS_KEY_ID": f"{user}-key", "AWS_SECRET_ACCESS_KEY": f"{user}-secret"}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = local_s3._start(self.command, self.data_dir, self.run_dir)
        local_s3._wait_until_ready(self.process, self.server, self.data_dir / "server.log")

    def stop(self) -> None:
        """Kill it, as a node that goes away does; what was put lies in its files."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def freeze(self) -> None:
        """Let all its processes stand still: connections stay and nothing answers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)


@contextmanager
def restartable_seaweed(data_dir: Path, policies: Mapping[str, str] | None = None) -> Iterator[Restartable]:
    """Run a server that can be stopped for the time of the block.

    Args:
        data_dir: Where its files lie; must not exist.
        policies: User name -> the IAM policy (JSON) that the server enforces for that user; ``user_environ`` has the
            credentials.
    """
    (data_dir / "data").mkdir(parents=True)
    run_dir = Path(tempfile.mkdtemp(prefix="stagecoach-s3-"))
    names = local_s3._PORTS
    ports = dict(zip(names, local_s3._free_ports(len(names)), strict=True))
    server = S3Server(
        endpoint_url=f"http://127.0.0.1:{ports['s3.port']}",
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        bucket=local_s3.BUCKET,
    )
    command = local_s3._command(local_s3._find_program(), data_dir / "data", run_dir, ports, server)
    _add_users(run_dir / "s3.json", policies or {})
    made = Restartable(server, data_dir, run_dir, command)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        local_s3._remove_traces(run_dir, data_dir / "data", ports)


def _add_users(config: Path, policies: Mapping[str, str]) -> None:
    values = json.loads(config.read_text(encoding="utf-8"))
    values["policies"] = [{"name": user, "content": policy} for user, policy in policies.items()]
    values["identities"] += [
        {
            "name": user,
            "credentials": [{"accessKey": f"{user}-key", "secretKey": f"{user}-secret"}],
            "actions": [],
            "policyNames": [user],
        }
        for user in policies
    ]
    config.write_text(json.dumps(values), encoding="utf-8")
