"""The Hub reader against a real HTTP server: ranges after a cut, busy answers, refusals, and where the token goes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pytest

from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.recipe.download import ResolvedFile
from stagecoach.settings import Settings
from stagecoach_download.fetch import copy_file
from stagecoach_download.hub import HubReader
from tests.hub_server import TOKEN, Hub, running_hub

CONTENT = bytes(range(256)) * 40
FILES = {"model.safetensors": CONTENT}
FILE = ResolvedFile(path="model.safetensors", size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        server.add("owner/name", FILES)
        yield server


def commit_of(hub: Hub, name: str = "owner/name") -> str:
    return str(hub.repos[name].commit_of("main"))


def reader(hub: Hub, **settings: object) -> HubReader:
    return HubReader("owner/name", "model", commit_of(hub), Settings(hub_endpoint=hub.url, **settings))  # type: ignore[arg-type]


def fetched(hub_reader: HubReader) -> bytes:
    stream = io.BytesIO()
    copy_file(FILE, hub_reader, stream, wait=lambda seconds: None)
    return stream.getvalue()


def test_a_file_is_read_at_the_commit(hub: Hub) -> None:
    assert fetched(reader(hub)) == CONTENT
    assert hub.reads == [(f"/owner/name/resolve/{commit_of(hub)}/model.safetensors", None, None)]


def test_a_branch_that_moves_on_changes_nothing(hub: Hub) -> None:
    planned = reader(hub)
    hub.repos["owner/name"].branches["main"] = {"model.safetensors": b"new"}
    assert fetched(planned) == CONTENT


def test_data_sets_have_their_own_addresses(hub: Hub) -> None:
    hub.add("datasets/owner/data", FILES)
    commit = commit_of(hub, "datasets/owner/data")
    assert fetched(HubReader("owner/data", "dataset", commit, Settings(hub_endpoint=hub.url))) == CONTENT
    assert [path for path, _, _ in hub.reads] == [f"/datasets/owner/data/resolve/{commit}/model.safetensors"]


def test_a_cut_connection_is_taken_up_with_a_range(hub: Hub) -> None:
    hub.behaviours = ["cut:1000"]
    assert fetched(reader(hub)) == CONTENT
    assert [asked for _, asked, _ in hub.reads] == [None, "bytes=1000-"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, status: int) -> None:
    hub.behaviours = [f"status:{status}"] * 2
    assert fetched(reader(hub)) == CONTENT
    assert len(hub.reads) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_to_do(hub: Hub, status: int) -> None:
    hub.behaviours = [f"status:{status}"]
    with pytest.raises(ConfigError, match=f"answers {status}: accept the repository's terms and set HF_TOKEN"):
        fetched(reader(hub))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], r"expected more than 10239 bytes, the Hub says that there are none"),
        (CONTENT + b"!", "expected 10240 bytes, got more"),
        (CONTENT[:-1] + b"!", "expected sha256"),
    ],
    ids=["shorter", "longer", "changed"],
)
def test_a_file_of_another_size_or_content_than_planned_is_refused(hub: Hub, content: bytes, message: str) -> None:
    hub.repos["owner/name"].snapshots[commit_of(hub)]["model.safetensors"] = content
    with pytest.raises(CorruptObjectError, match=message):
        fetched(reader(hub))


def test_a_gated_repository_is_read_with_a_token_only(hub: Hub) -> None:
    hub.repos["owner/name"].gated = True
    with pytest.raises(ConfigError, match="answers 401: accept the repository's terms and set HF_TOKEN"):
        fetched(reader(hub))
    assert fetched(reader(hub, hub_token=TOKEN)) == CONTENT


def test_a_file_that_is_gone_is_a_missing_input(hub: Hub) -> None:
    hub.repos["owner/name"].snapshots[commit_of(hub)].clear()
    with pytest.raises(MissingInputError, match="the Hub answers 404"):
        fetched(reader(hub))


def test_the_token_goes_to_the_hub_but_not_to_where_it_redirects(hub: Hub) -> None:
    with running_hub() as storage:
        storage.add("owner/name", FILES)
        commit_of(storage)
        hub.behaviours = [f"redirect:{storage.url.replace('127.0.0.1', 'localhost')}"]
        assert fetched(reader(hub, hub_token="hf_secret")) == CONTENT
        assert hub.reads[0][2] == "Bearer hf_secret"
        assert [authorization for _, _, authorization in storage.reads] == [None]


def test_offline_means_offline(hub: Hub) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids"):
        reader(hub, hub_offline=True)
    assert hub.requests == []
