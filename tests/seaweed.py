"""A real S3 server for tests: the one that ``--store s3`` starts, with what tests want to know about it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.storage.s3 import S3Options, S3Store
from stagecoach_workflows.local_s3 import S3Server, running_s3_server


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
