"""The Hub reader against a real HTTP server: ranges after a cut, busy answers, refusals, and where the token goes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pytest

from stagecoach.errors import ConfigError, MissingInputError
from stagecoach.recipe.download import ResolvedFile
from stagecoach.settings import Settings
from stagecoach_download.fetch import copy_file
from stagecoach_download.hub import HubReader
from tests.unit.stagecoach_download.hub_server import HubServer, hub_server

COMMIT = "c" * 40
CONTENT = bytes(range(256)) * 40
FILE = ResolvedFile(path="model.safetensors", size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
PATH = f"/owner/name/resolve/{COMMIT}/model.safetensors"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        server.files[PATH] = CONTENT
        yield server


def reader(hub: HubServer, **settings: object) -> HubReader:
    return HubReader("owner/name", "model", COMMIT, Settings(hub_endpoint=hub.url, **settings))  # type: ignore[arg-type]


def fetched(hub_reader: HubReader) -> bytes:
    stream = io.BytesIO()
    copy_file(FILE, hub_reader, stream, wait=lambda seconds: None)
    return stream.getvalue()


def test_a_file_is_read_at_the_commit(hub: HubServer) -> None:
    assert fetched(reader(hub)) == CONTENT
    assert hub.requests == [(PATH, None, None)]


def test_data_sets_have_their_own_addresses(hub: HubServer) -> None:
    hub.files["/datasets" + PATH] = CONTENT
    assert fetched(HubReader("owner/name", "dataset", COMMIT, Settings(hub_endpoint=hub.url))) == CONTENT


def test_a_cut_connection_is_taken_up_with_a_range(hub: HubServer) -> None:
    hub.behaviours = ["cut:1000"]
    assert fetched(reader(hub)) == CONTENT
    assert [asked for _, asked, _ in hub.requests] == [None, "bytes=1000-"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: HubServer, status: int) -> None:
    hub.behaviours = [f"status:{status}"] * 2
    assert fetched(reader(hub)) == CONTENT
    assert len(hub.requests) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_to_do(hub: HubServer, status: int) -> None:
    hub.behaviours = [f"status:{status}"]
    with pytest.raises(ConfigError, match=f"answers {status}: accept the repository's terms and set HF_TOKEN"):
        fetched(reader(hub))


def test_a_file_that_is_gone_is_a_missing_input(hub: HubServer) -> None:
    hub.files.clear()
    with pytest.raises(MissingInputError, match="the Hub answers 404"):
        fetched(reader(hub))


def test_the_token_goes_to_the_hub_but_not_to_where_it_redirects(hub: HubServer) -> None:
    with hub_server() as storage:
        storage.files[PATH] = CONTENT
        hub.behaviours = [f"redirect:{storage.url.replace('127.0.0.1', 'localhost')}"]
        assert fetched(reader(hub, hub_token="hf_secret")) == CONTENT
        assert hub.requests[0][2] == "Bearer hf_secret"
        assert [authorization for _, _, authorization in storage.requests] == [None]


def test_offline_means_offline(hub: HubServer) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids"):
        reader(hub, hub_offline=True)
    assert hub.requests == []
