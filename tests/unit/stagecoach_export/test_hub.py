"""Pushing with the real client to a server that speaks the Hub's API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.outputs import Input
from stagecoach.pushes import is_pushed, push_once, push_records
from stagecoach.recipe.export import ExportConfig, PushConfig
from stagecoach.records import read_numbered
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
    PUSH = PushConfig(repo="team/model")
    CONFIG = ExportConfig(push=PUSH)

    def records(self, server: Hub) -> str:
        return push_records(self.PUSH, Settings(hub_endpoint=server.url))

    @pytest.fixture(autouse=True)
    def _environment(self, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    def test_it_names_the_commit(self, server: Hub, exported: Input) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        started, done = read_numbered(exported.store, self.records(server)).values()
        assert (started["state"], started["export"]) == ("started", "exports/m-1/")
        assert (done["state"], done["export"], done["repo"]) == ("pushed", "exports/m-1/", "team/model")
        assert done["commit"] == server.repos["team/model"].commit_of("main")
        assert server.repos["team/model"].messages == ["Stagecoach: tiny, iteration 3"]
        common = {"state", "export", "manifest_sha256"}
        assert {*started} == common
        assert {*done} == common | {"repo", "branch", "commit", "url", "pushed_unix_seconds"}

    def test_a_push_is_done_once(self, server: Hub, exported: Input) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        run.finish(self.CONFIG, exported, exported.store)
        assert len(server.repos["team/model"].messages) == 1

    def test_an_export_that_another_one_replaced_is_pushed_again(
        self, server: Hub, exported: Input, tmp_path: Path
    ) -> None:
        """A, B and A again, as a person does who finds that B was no good: the branch holds A."""
        other_files = {**FILES, "model-00001-of-00002.safetensors": b"B" * 5000}
        other = Pipeline(exported.store, tmp_path).finish("exports/m-2/", other_files, summary={"iteration": 4})
        for each, files in ((exported, FILES), (other, other_files), (exported, FILES)):
            run.finish(self.CONFIG, each, exported.store)
            assert server.repos["team/model"].branches["main"] == files
        run.finish(self.CONFIG, exported, exported.store)
        assert len(server.repos["team/model"].messages) == 3

    def test_an_export_that_was_made_again_with_other_bytes_is_pushed_again(
        self, server: Hub, exported: Input, tmp_path: Path
    ) -> None:
        """A training on GPUs that was deleted and done anew has the same key."""
        run.finish(self.CONFIG, exported, exported.store)
        exported.store.delete([info.key for info in exported.store.list(exported.prefix)])
        files = {**FILES, "config.json": b'{"a": 1}'}
        again = Pipeline(exported.store, tmp_path).finish(exported.prefix, files, summary={"iteration": 3})
        run.finish(self.CONFIG, again, exported.store)
        assert server.repos["team/model"].branches["main"] == files

    def test_after_a_push_that_was_cut_nothing_counts_as_pushed(
        self, server: Hub, exported: Input, tmp_path: Path
    ) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        other = Pipeline(exported.store, tmp_path).finish("exports/m-2/", FILES, summary={"iteration": 4})

        def cut() -> dict[str, Any]:
            raise UnavailableError("killed, perhaps after the commit")

        with pytest.raises(UnavailableError):
            push_once(exported.store, self.records(server), other.prefix, cut)
        for each in (exported, other):
            assert not is_pushed(exported.store, self.records(server), each.prefix)
        run.finish(self.CONFIG, exported, exported.store)
        assert is_pushed(exported.store, self.records(server), exported.prefix)

    def test_of_two_pushes_at_once_the_record_names_the_one_that_the_branch_holds(
        self, server: Hub, exported: Input, tmp_path: Path
    ) -> None:
        other = Pipeline(exported.store, tmp_path).finish("exports/m-2/", FILES, summary={"iteration": 4})
        store, records = exported.store, self.records(server)
        branch: list[str] = []

        def push_to_branch(prefix: str) -> dict[str, Any]:
            branch.append(prefix)
            return {}

        def push_other_meanwhile() -> dict[str, Any]:
            if not branch:
                push_to_branch(exported.prefix)
                push_once(store, records, other.prefix, lambda: push_to_branch(other.prefix))
                return {}
            return push_to_branch(exported.prefix)

        push_once(store, records, exported.prefix, push_other_meanwhile)
        assert branch == [exported.prefix, other.prefix, exported.prefix]
        assert is_pushed(store, records, exported.prefix)
        assert not is_pushed(store, records, other.prefix)

    def test_another_hub_is_another_push(self, server: Hub, exported: Input, monkeypatch: pytest.MonkeyPatch) -> None:
        run.finish(self.CONFIG, exported, exported.store)
        with running_hub() as second:
            monkeypatch.setenv("HF_ENDPOINT", second.url)
            run.finish(self.CONFIG, exported, exported.store)
            assert second.repos["team/model"].branches["main"] == FILES

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
