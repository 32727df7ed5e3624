"""The three download tasks, each from source to output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from stagecoach.demo.chat import demo_chat_bytes
from stagecoach.errors import ConfigError, CorruptObjectError, MissingInputError
from stagecoach.outputs import Output
from stagecoach.recipe.base import Section
from stagecoach.recipe.download import DownloadDataConfig, ResolvedFile
from stagecoach.recipe.source import HubSource, Source
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing, data_config, model_config, tokenizer_config
from stagecoach.storage.memory import MemoryStore
from stagecoach_download.run import check, run
from stagecoach_download.sources import StoreReader
from tests.hub_server import running_hub

SEED = {"kind": "seed", "vocab_size": 640, "hidden_size": 32, "intermediate_size": 64}


def source(**values: Any) -> Source:
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    return adapter.validate_python(values)


def no_hub(source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
    raise AssertionError("the Hub was asked")


def output_of(config: Section, scratch: Path) -> tuple[Output, dict[str, bytes]]:
    store = MemoryStore("out")
    output = Output(store, "p/", scratch)
    run(config, {}, output, store)
    return output, {name: store.get(entry.path) for name, entry in output.objects.items()}


def test_a_seed_gives_config_and_weights(tmp_path: Path) -> None:
    output, files = output_of(model_config(source(**SEED), Settings(), no_hub), tmp_path)
    assert sorted(files) == ["config.json", "model.safetensors"]
    assert output.summary["origin"] == "made from seed 1"


def test_a_seed_gives_the_final_tokenizer(tmp_path: Path) -> None:
    _, files = output_of(tokenizer_config(source(**SEED), "chatml", Settings(), no_hub), tmp_path)
    assert {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"} <= set(files)
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    assert (tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>")) == (640, 4)
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|im_end|>"


def test_the_embedded_chat_set_comes_as_it_is(tmp_path: Path) -> None:
    _, files = output_of(data_config(source(kind="embedded"), Settings(), no_hub), tmp_path)
    assert files == {"chat.jsonl": demo_chat_bytes()}


def test_a_folder_is_copied_with_its_licence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "LICENSE", "notes.txt"):
        (folder / name).write_text(name)
    config = model_config(source(kind="directory", path=str(folder)), Settings(), no_hub)
    output, files = output_of(config, tmp_path / "scratch")
    assert files == {name: name.encode() for name in ("config.json", "model.safetensors", "LICENSE")}
    assert output.summary == {"origin": str(folder), "num_files": 3, "num_files_taken_over": 0}


def test_a_folder_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    config = data_config(source(kind="directory", path=str(tmp_path)), Settings(), no_hub)
    (tmp_path / "a.jsonl").write_text("[]")
    with pytest.raises(CorruptObjectError, match=r"a\.jsonl: expected sha256 44136fa355b3.*start a new run"):
        output_of(config, tmp_path / "scratch")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(MissingInputError, match=r"a\.jsonl: expected a file, it is gone"):
        output_of(config, tmp_path / "scratch")


def test_an_object_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    store = MemoryStore("in")
    store.put("a.jsonl", b"{}")
    info = store.head("a.jsonl")
    assert info is not None
    file = ResolvedFile(path="a.jsonl", size_bytes=2, etag=info.etag)
    assert b"".join(StoreReader(store).chunks(file, 0)) == b"{}"
    assert b"".join(StoreReader(store).chunks(file, 1)) == b"}"
    store.put("a.jsonl", b"[]")
    with pytest.raises(CorruptObjectError, match=r"memory://in/a\.jsonl: expected ETag .* it changed after the run"):
        list(StoreReader(store).chunks(file, 0))
    store.delete(["a.jsonl"])
    with pytest.raises(MissingInputError, match="expected an object, it is gone"):
        list(StoreReader(store).chunks(file, 0))


def test_a_hub_data_set_comes_from_the_planned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'{"messages": []}\n'
    file = ResolvedFile(path="train.jsonl", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with running_hub() as hub:
        commit = hub.add("datasets/o/d", {"train.jsonl": content}).commit_of("main")
        config = DownloadDataConfig(source=HubSource(repo="o/d"), commit=commit, files=(file,))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        output, files = output_of(config, tmp_path)
    assert files == {"train.jsonl": content}
    assert output.summary["commit"] == commit


def test_a_hub_source_that_nobody_resolved_is_refused(tmp_path: Path) -> None:
    file = ResolvedFile(path="train.jsonl", size_bytes=1, sha256="0" * 64)
    config = DownloadDataConfig(source=HubSource(repo="o/d"), files=(file,))
    with pytest.raises(ConfigError, match="expected the commit that `stagecoach plan` resolved"):
        output_of(config, tmp_path)
    with pytest.raises(ConfigError, match="expected the commit that `stagecoach plan` resolved"):
        check(config, {})
