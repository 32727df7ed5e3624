"""Sources become files with known content: folders are hashed, stores listed, the Hub's listing is handed in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter

from stagecoach.demo.chat import demo_chat_bytes
from stagecoach.errors import ConfigError, MissingInputError
from stagecoach.keys import content_key
from stagecoach.recipe.download import ResolvedFile
from stagecoach.recipe.source import HubSource, Source
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing, data_config, model_config, tokenizer_config

SETTINGS = Settings()
COMMIT = "0123456789abcdef" * 2 + "01234567"


def source(**values: Any) -> Source:
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    return adapter.validate_python(values)


def no_hub(source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
    raise AssertionError("the Hub was asked")


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_folder_is_resolved_to_paths_sizes_and_hashes(tmp_path: Path) -> None:
    write(tmp_path, config__json="{}", model__safetensors="abc", LICENSE="free", optimizer__bin="never read")
    (tmp_path / ".git").mkdir()
    config = model_config(source(kind="directory", path=str(tmp_path)), SETTINGS, no_hub)
    assert config.files == (
        ResolvedFile(path="config.json", size_bytes=2, sha256=hashlib.sha256(b"{}").hexdigest()),
        ResolvedFile(path="model.safetensors", size_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest()),
    )
    assert [file.path for file in config.documents] == ["LICENSE"]
    assert config.seed is None


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage may run in another working directory than the plan."""
    write(tmp_path, a__jsonl="{}\n")
    monkeypatch.chdir(tmp_path)
    config = data_config(source(kind="directory", path="."), SETTINGS, no_hub)
    assert config.source == source(kind="directory", path=str(tmp_path))


def test_a_single_file_is_a_source_too(tmp_path: Path) -> None:
    write(tmp_path, a__jsonl="{}\n", b__jsonl="{}\n")
    config = data_config(source(kind="directory", path=str(tmp_path / "a.jsonl")), SETTINGS, no_hub)
    assert [file.path for file in config.files] == ["a.jsonl"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere: expected a folder or file, found nothing"):
        data_config(source(kind="directory", path=str(tmp_path / "nowhere")), SETTINGS, no_hub)


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder that came from others must not bring files of this machine into the store."""
    write(tmp_path / "outside", secret="x")
    write(tmp_path / "chat", **{"a.jsonl": "{}\n"})
    (tmp_path / "chat/b.jsonl").symlink_to(tmp_path / "outside/secret")
    with pytest.raises(ConfigError, match=r"b\.jsonl: expected files, got a link that leads out of"):
        data_config(source(kind="directory", path=str(tmp_path / "chat")), SETTINGS, no_hub)


@pytest.mark.parametrize("name", [b"a\x1b[2J.jsonl", b"a\\b.jsonl", b"a\nb.jsonl", b"\xff.jsonl"])
def test_a_file_whose_name_no_store_can_hold_is_refused(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text("{}\n")
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_text("{}\n")
    with pytest.raises(ConfigError, match=r"a file has a name that no store can hold: .*choose another name"):
        data_config(source(kind="directory", path=str(tmp_path)), SETTINGS, no_hub)


def test_a_linked_folder_is_not_entered(tmp_path: Path) -> None:
    write(tmp_path / "outside", **{"c.jsonl": "{}\n"})
    write(tmp_path / "chat", **{"a.jsonl": "{}\n"})
    (tmp_path / "chat/more").symlink_to(tmp_path / "outside")
    found = data_config(source(kind="directory", path=str(tmp_path / "chat")), SETTINGS, no_hub)
    assert [file.path for file in found.files] == ["a.jsonl"]


def test_links_inside_a_folder_and_inside_a_repository_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--owner--name"
    write(repository / "blobs", **{"0123": "{}\n"})
    snapshot = repository / "snapshots/abc"
    write(snapshot, **{"a.jsonl": "{}\n"})
    (snapshot / "b.jsonl").symlink_to("../../blobs/0123")
    (snapshot / "c.jsonl").symlink_to("a.jsonl")
    found = data_config(source(kind="directory", path=str(snapshot)), SETTINGS, no_hub)
    assert [file.path for file in found.files] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_the_embedded_chat_set_is_one_file() -> None:
    config = data_config(source(kind="embedded"), SETTINGS, no_hub)
    sha256 = hashlib.sha256(demo_chat_bytes()).hexdigest()
    assert config.files == (ResolvedFile(path="chat.jsonl", size_bytes=len(demo_chat_bytes()), sha256=sha256),)


def test_a_seed_is_its_own_identity() -> None:
    keys = {
        content_key("download-model", 1, model_config(source(kind="seed", seed=seed), SETTINGS, no_hub), {})
        for seed in (1, 1, 2)
    }
    assert len(keys) == 2
    tokenizer = tokenizer_config(source(kind="seed", vocab_size=640), "chatml", SETTINGS, no_hub)
    assert tokenizer.seed is not None
    assert tokenizer.seed.model.vocab_size == 640


def test_a_hub_repository_is_resolved_by_the_listing_that_is_handed_in() -> None:
    names = ("config.json", "model.safetensors", "README.md", "flax_model.msgpack")
    files = {name: ResolvedFile(path=name, size_bytes=1, git_blob_sha1="a" * 40) for name in names}

    def hub(source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
        assert (source.repo, repo_type) == ("owner/name", "model")
        return HubListing(commit=COMMIT, paths=[*names, "odd\\name.bin"], identify=files.__getitem__)

    config = model_config(source(kind="hub", repo="owner/name"), SETTINGS, hub)
    assert config.commit == COMMIT
    assert [file.path for file in config.files] == ["config.json", "model.safetensors"]
    assert [file.path for file in config.documents] == ["README.md"]


def test_sources_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a data source of kind 'seed'"):
        data_config(source(kind="seed"), SETTINGS, no_hub)
    with pytest.raises(ConfigError, match="a model source of kind 'embedded'"):
        model_config(source(kind="embedded"), SETTINGS, no_hub)
