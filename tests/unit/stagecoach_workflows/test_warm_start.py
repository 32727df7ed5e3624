"""A model that comes from a release or an export of the store: which files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError, MissingInputError
from stagecoach.outputs import Output
from stagecoach.recipe.download import DownloadModelConfig, DownloadTokenizerConfig
from stagecoach.recipe.source import ExportSource
from stagecoach.releases import Release, append_release, check_export
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_download.sources import ExportReader
from stagecoach_workflows.decisions import candidates, task_configs
from tests.unit.stagecoach_workflows.recipes import small_recipe
from tests.unit.stagecoach_workflows.test_decisions import no_hub

EXPORT = "exports/m-00ff/"
FILES = ("README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore("warm")
    output = Output(store, EXPORT, tmp_path)
    for name in FILES:
        output.write_bytes(name, name.encode() * 3)
    output.commit(task="export", key="00ff", name="m", output_version=1)
    digest = check_export(store, EXPORT, None, "test")
    release = Release(outcome="promoted", candidate=EXPORT, export=EXPORT, manifest_sha256=digest)
    append_release(store, "chat", {}, release)
    return store


def configs(model: Any, store: MemoryStore | None) -> tuple[DownloadModelConfig, DownloadTokenizerConfig]:
    found = task_configs(small_recipe(model=model), Settings(), no_hub, store)
    first, second = found["download-model"], found["download-tokenizer"]
    assert isinstance(first, DownloadModelConfig)
    assert isinstance(second, DownloadTokenizerConfig)
    return first, second


@pytest.mark.parametrize(
    "model",
    [
        "release:chat",
        {"name": "m", "source": {"kind": "release", "name": "chat"}},
        {"name": "m", "source": {"kind": "export", "export": "exports/m-00ff"}},
    ],
)
def test_model_and_tokenizer_are_the_files_of_the_export(store: MemoryStore, model: Any) -> None:
    found, tokenizer = configs(model, store)
    assert isinstance(found.source, ExportSource)
    assert found.source.export == EXPORT
    assert [file.path for file in found.files] == ["config.json", "generation_config.json", "model.safetensors"]
    assert [file.path for file in found.documents] == ["README.md"]
    assert [file.path for file in tokenizer.files] == ["tokenizer.json"]
    content = b"".join(ExportReader(store, EXPORT).chunks(found.files[0], 4))
    assert content == (b"config.json" * 3)[4:]


def test_where_the_files_lie_is_not_part_of_the_key(store: MemoryStore) -> None:
    keys = set()
    for source in ({"kind": "release", "name": "chat"}, {"kind": "export", "export": EXPORT}):
        recipe = small_recipe(model={"name": "m", "source": source})
        keys.add(candidates(recipe, task_configs(recipe, Settings(), no_hub, store))["export"].output)
    assert len(keys) == 1


def test_a_release_that_does_not_exist_names_those_that_do(store: MemoryStore) -> None:
    with pytest.raises(MissingInputError, match=r"release other: nothing has been promoted .*releases there: chat"):
        configs("release:other", store)


def test_without_a_store_nothing_can_be_looked_up() -> None:
    with pytest.raises(ConfigError, match="lies in the store; give --store"):
        configs("release:chat", None)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("chat", "expected a section, or release:NAME, got 'chat'"),
        ("release:../x", "release name: expected"),
        ({"name": "m", "source": {"kind": "export", "export": "runs/x/"}}, "expected the folder of an export"),
        ({"name": "m", "source": {"kind": "export", "export": "exports/../x"}}, "expected the folder of an export"),
    ],
)
def test_what_is_no_release_and_no_export_is_refused(model: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        small_recipe(model=model)


def test_a_release_is_no_chat_data(store: MemoryStore) -> None:
    data = {"name": "d", "sources": [{"name": "a", "source": {"kind": "release", "name": "chat"}}]}
    recipe = small_recipe(data=data)
    with pytest.raises(ConfigError, match="kind 'release'"):
        task_configs(recipe, Settings(), no_hub, store)
