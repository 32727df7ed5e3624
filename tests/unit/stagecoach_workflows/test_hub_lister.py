"""What the plan asks the Hub, with the real client and a server that speaks the Hub's API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from stagecoach.errors import ConfigError, MissingInputError, UnavailableError
from stagecoach.recipe.source import HubSource
from stagecoach.settings import Settings
from stagecoach.source_identity import model_config
from stagecoach_workflows.plan import HubLister
from tests.hub_server import LARGE_BYTES, TOKEN, Hub, blob_id, running_hub

SMALL, LARGE = b"{}", b"w" * (LARGE_BYTES + 1)
SOURCE = HubSource(repo="owner/name")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        server.add("owner/name", {"config.json": SMALL, "model.safetensors": LARGE})
        yield server


def lister(hub: Hub, **settings: object) -> HubLister:
    return HubLister(Settings(hub_endpoint=hub.url, **settings))  # type: ignore[arg-type]


def test_a_branch_becomes_a_commit_and_every_file_has_its_size_and_digest(hub: Hub) -> None:
    listing = lister(hub)(SOURCE, "model")
    assert listing.commit == hub.repos["owner/name"].commit_of("main")
    config, weights = listing.identify("config.json"), listing.identify("model.safetensors")
    assert (config.size_bytes, config.git_blob_sha1, config.sha256) == (2, blob_id(SMALL), None)
    assert (weights.size_bytes, weights.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


def test_a_branch_that_moved_is_another_commit_in_the_next_plan(hub: Hub) -> None:
    before = lister(hub)
    first = before(SOURCE, "model").commit
    hub.repos["owner/name"].branches["main"]["config.json"] = b"{ }"
    assert before(SOURCE, "model").commit == first  # one plan sees one state
    assert lister(hub)(SOURCE, "model").commit != first
    assert lister(hub)(HubSource(repo="owner/name", revision=first), "model").identify("config.json").size_bytes == 2


def test_a_list_longer_than_a_page_is_whole(hub: Hub) -> None:
    """The tree has all files, in pages; the answer about a revision need not."""
    files = {f"data/part-{number:04d}.jsonl": b"%d" % number for number in range(1_205)}
    hub.add("datasets/owner/many", {**files, "last/weights.bin": LARGE})
    listing = lister(hub)(HubSource(repo="owner/many"), "dataset")
    assert sum(path.endswith(f"/tree/{listing.commit}") for path in hub.requests) == 2  # 1,206 files, two folders
    assert sorted(listing.paths) == sorted([*files, "last/weights.bin"])
    last, weights = listing.identify("data/part-1204.jsonl"), listing.identify("last/weights.bin")
    assert (last.size_bytes, last.git_blob_sha1, last.sha256) == (4, blob_id(b"1204"), None)
    assert (weights.size_bytes, weights.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


def test_a_short_list_comes_from_the_tree_too(hub: Hub) -> None:
    listing = lister(hub)(SOURCE, "model")
    assert hub.requests == [
        "/api/models/owner/name/revision/main",
        f"/api/models/owner/name/tree/{listing.commit}",
    ]


@pytest.mark.parametrize("status", [200, 404])
def test_an_empty_repository_holds_nothing(hub: Hub, status: int) -> None:
    """Whether the tree is an empty list or is not there."""
    hub.empty_tree_status = status
    hub.add("owner/empty", {})
    with pytest.raises(MissingInputError, match=r"owner/empty@[0-9a-f]{12}: expected a config\.json .*, found nothing"):
        model_config(HubSource(repo="owner/empty"), Settings(), lister(hub))


def test_a_gated_repository_is_listed_for_everybody(hub: Hub) -> None:
    hub.repos["owner/name"].gated = True
    assert len(lister(hub)(SOURCE, "model").paths) == 2


def test_a_private_repository_needs_the_token(hub: Hub) -> None:
    hub.repos["owner/name"].private = True
    with pytest.raises(MissingInputError, match="HF_TOKEN may not read it"):
        lister(hub)(SOURCE, "model")
    assert len(lister(hub, hub_token=TOKEN)(SOURCE, "model").paths) == 2


@pytest.mark.parametrize("source", [HubSource(repo="owner/other"), HubSource(repo="owner/name", revision="v9")])
def test_what_is_not_there_is_a_missing_input(hub: Hub, source: HubSource) -> None:
    with pytest.raises(MissingInputError, match=f"{source.repo} at {source.revision}"):
        lister(hub)(source, "model")


@pytest.mark.parametrize(
    ("status", "error"), [(429, UnavailableError), (500, UnavailableError), (503, UnavailableError), (403, ConfigError)]
)
def test_what_the_hub_answers(hub: Hub, status: int, error: type[Exception]) -> None:
    hub.status = status
    with pytest.raises(error, match=f"owner/name at main: .*{status}"):
        lister(hub)(SOURCE, "model")
