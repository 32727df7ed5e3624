"""The three stores that one test class runs over."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore

if TYPE_CHECKING:
    from tests.seaweed import SeaweedServer


@pytest.fixture(params=["memory", "directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind; S3 is a fresh prefix on the session's SeaweedFS."""
    if request.param == "memory":
        return MemoryStore(secrets.token_hex(4))
    if request.param == "directory":
        return LocalStore(tmp_path / "store")
    request.getfixturevalue("s3_environment")
    server: SeaweedServer = request.getfixturevalue("seaweed")
    return server.store()


@pytest.fixture
def s3_environment(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> SeaweedServer:
    """The session's server, with this process's environment pointing to it."""
    seaweed.use(monkeypatch)
    return seaweed
