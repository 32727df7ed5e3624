"""Pushing with the real client to a server that speaks the Hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.outputs import Input
from stagecoach.recipe.export import ExportConfig, PushConfig, push_record_key
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_export import run
from stagecoach_export.hub import push
from tests.hub_server import TOKEN, Hub, running_hub
from tests.tiny_models import Pipeline

# The client itself sends streams in a way that its HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {
    "README.md": b"# card\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"1" * 5000,
    "model-00002-of-00002.safetensors": b"2" * 6000,
}


@pytest.fixture
def server() -> Iterator[Hub]:
    with running_hub() as started:
        yield started


@pytest.fixture
def exported(tmp_path: Path) -> Input:
    return Pipeline(MemoryStore(), tmp_path).finish("exports/m-1/", FILES, summary={"iteration": 3})


def _settings(server: Hub, **changes: Any) -> Settings:
    return Settings(**{"hub_endpoint": server.url, "hub_token": TOKEN, **changes})


def _push(server: Hub, exported: Input, **config: Any) -> Any:
    return push(PushConfig(**{"repo": "team/model", **config}), exported, _settings(server), "the note")


class TestPush:
    def test_a_new_repository_is_private_and_holds_the_export(self, server: Hub, exported: Input) -> None:
        pushed = _push(server, exported)
        repo = server.repos["team/model"]
        assert repo.private is True
        assert repo.branches["main"] == FILES
        assert repo.messages == ["the note"]
        assert pushed.url == f"{server.url}/team/model/commit/{pushed.commit}"

    def test_branch_and_message(self, server: Hub, exported: Input) -> None:
        _push(server, exported, branch="v2", commit_message="hello", private=False)
        repo = server.repos["team/model"]
        assert (repo.private, repo.messages) == (False, ["hello"])
        assert repo.branches == {"main": {}, "v2": FILES}

    @pytest.mark.parametrize("page_files", [1000, 2])
    def test_stale_weights_go_and_other_files_stay(self, server: Hub, exported: Input, page_files: int) -> None:
        """Also where the repository lists its files in pages, the stale ones on the last."""
        server.page_files = page_files
        old = {"model.safetensors": b"old", "pytorch_model.bin": b"old", "notes.txt": b"mine", "config.json": b"old"}
        server.add("team/model", old, private=True)
        _push(server, exported)
        assert server.repos["team/model"].branches["main"] == {**FILES, "notes.txt": b"mine"}

    def test_a_cut_push_goes_on(self, server: Hub, exported: Input) -> None:
        server.fail_uploads_after = 1
        with pytest.raises(UnavailableError, match="the Hub answers 501; run it again to go on"):
            _push(server, exported)
        assert server.repos["team/model"].branches["main"] == {}
        server.fail_uploads_after = None
        _push(server, exported)
        assert server.uploads == [5000, 6000]

    @pytest.mark.parametrize(
        ("status", "error"), [(403, ConfigError), (500, UnavailableError), (429, UnavailableError)]
    )
    def test_what_the_hub_answers(self, server: Hub, exported: Input, status: int, error: type[Exception]) -> None:
        server.status = status
        with pytest.raises(error, match=f"team/model: the Hub answers {status}"):
            _push(server, exported)

    def test_a_wrong_token(self, server: Hub, exported: Input) -> None:
        with pytest.raises(ConfigError, match="token"):
            push(PushConfig(repo="team/model"), exported, _settings(server, hub_token="hf_other"), "n")

    def test_no_token_and_offline_are_refused_before_anything_is_asked(self, server: Hub, exported: Input) -> None:
        for changes, message in (
            ({"hub_token": None}, "HF_TOKEN, got none"),
            ({"hub_offline": True}, "HF_HUB_OFFLINE"),
        ):
            with pytest.raises(ConfigError, match=message):
                push(PushConfig(repo="team/model"), exported, _settings(server, **changes), "n")
        assert server.repos == {}


class TestRecord:
    CONFIG = ExportConfig(push=PushConfig(repo="team/model"))

    @pytest.fixture(autouse=True)
    def _environment(self, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def test_it_names_the_commit(self, server: Hub, exported: Input) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        assert self.CONFIG.push is not None
        record = json.loads(exported.store.get(push_record_key("exports/m-1/", self.CONFIG.push)))
        assert (record["repo"], record["branch"]) == ("team/model", "main")
        assert server.repos["team/model"].messages == ["Stagecoach: tiny, iteration 3"]

    def test_a_push_is_done_once(self, server: Hub, exported: Input) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        run.finish(self.CONFIG, exported, exported.store)
        assert len(server.repos["team/model"].messages) == 1

    def test_another_branch_is_another_push(self, server: Hub, exported: Input) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        run.finish(ExportConfig(push=PushConfig(repo="team/model", branch="b")), exported, exported.store)
        assert len(server.repos["team/model"].messages) == 2

    def test_without_push_nothing_happens(self, server: Hub, exported: Input) -> None:
        run.finish(ExportConfig(), exported, exported.store)
        assert server.repos == {}


@pytest.mark.parametrize(
    "branch", ["", "../x", "a b", "refs/pr/1", "a//b", "/a", "a/", ".a", "a.lock", "-a", "HEAD", "a..b", "a@{b"]
)
def test_a_branch_that_git_or_the_hub_would_refuse_is_refused_with_the_recipe(branch: str) -> None:
    with pytest.raises(ValueError, match="expected a branch"):
        PushConfig(repo="team/model", branch=branch)


@pytest.mark.parametrize("branch", ["main", "nightly/v2", "v1.0", "a_b-c+d@e"])
def test_a_branch_that_git_takes_is_taken(branch: str) -> None:
    assert PushConfig(repo="team/model", branch=branch).branch == branch
