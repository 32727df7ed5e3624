"""An export is found by directory, by address and by release, checked, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError, CorruptObjectError, DataError, MissingInputError
from stagecoach.outputs import Output
from stagecoach.releases import Release, append_release, check_export
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.serving.exports import served_model
from tests.unit.stagecoach_workflows.serving.hub_folder import hub_files, write_hub_folder

PREFIX = "exports/tiny-0123456789abcdef0123/"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(scratch_dir=tmp_path / "scratch")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    output = Output(store, PREFIX, tmp_path / "making")
    for name, data in hub_files().items():
        output.write_bytes(name, data)
    output.commit(task="export", name="tiny", output_version=1, key="0123456789abcdef0123")
    digest = check_export(store, PREFIX, None, "test")
    append_release(
        store, "chat", {}, Release(outcome="promoted", candidate=PREFIX, export=PREFIX, manifest_sha256=digest)
    )
    return store


def test_a_directory(tmp_path: Path, settings: Settings) -> None:
    folder = write_hub_folder(tmp_path / "My_Model")
    with served_model(str(folder), "", "", settings) as model:
        assert (model.name, model.folder.name) == ("my-model", "my-model")
        assert (model.stop_ids, model.num_heads, model.num_kv_heads, model.speaks_tools) == ((4, 2), 32, 8, True)
        assert (model.folder / "model.safetensors").read_bytes() == b"weights"
    assert not model.folder.exists(), "the links are gone"
    assert (folder / "model.safetensors").is_file(), "what they led to is not"


@pytest.mark.parametrize("export", ["{store}/" + PREFIX, "file://{store}/" + PREFIX[:-1], PREFIX, "release:chat"])
def test_an_output_of_a_store(store: LocalStore, settings: Settings, export: str) -> None:
    folder = store.url.removeprefix("file://").rstrip("/")
    with served_model(export.format(store=folder), folder, "", settings) as model:
        assert model.name == ("chat" if export.startswith("release") else "tiny")
        assert (model.folder / "model.safetensors").read_bytes() == b"weights"


def test_the_name_is_a_wish(store: LocalStore, settings: Settings) -> None:
    with served_model("release:chat", store.url, "assistant", settings) as model:
        assert (model.name, model.folder.name) == ("assistant", "assistant")


def test_a_damaged_export_is_not_served(store: LocalStore, settings: Settings, tmp_path: Path) -> None:
    weights = next((tmp_path / "store" / PREFIX).glob("try-*/model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(b"weightz")
    with pytest.raises(CorruptObjectError, match=r"model.safetensors: expected 7 bytes with sha256"):
        with served_model("release:chat", store.url, "", settings):
            pass


@pytest.mark.parametrize(
    ("export", "name", "error", "sentence"),
    [
        ("nowhere", "", ConfigError, "EXPORT: expected a directory, the address of an export .* got 'nowhere'"),
        ("https://host/model", "", ConfigError, "EXPORT: expected a directory"),
        ("release:", "", ConfigError, "release name: expected 1 to 63"),
        ("release:other", "", MissingInputError, r"nothing has been promoted under this name .*there: chat"),
        ("exports/gone-0123456789abcdef0123", "", MissingInputError, "no finished output here"),
        ("release:chat", "My Model", ConfigError, "--name: expected 1 to 63"),
    ],
)
def test_what_cannot_be_served(
    store: LocalStore, settings: Settings, export: str, name: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        with served_model(export, store.url, name, settings):
            pass


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(tmp_path: Path, settings: Settings, file: str) -> None:
    (write_hub_folder(tmp_path / "model") / file).unlink()
    with pytest.raises(MissingInputError, match="is not there"):
        with served_model(str(tmp_path / "model"), "", "", settings):
            pass


@pytest.mark.parametrize("listed", [None, [], ["<|im_end|>"], "</s>"])
def test_answers_that_would_never_end(tmp_path: Path, settings: Settings, listed: Any) -> None:
    write_hub_folder(tmp_path / "model", eos_token_id=listed)
    with pytest.raises(DataError, match="expected the tokens that end an answer"):
        with served_model(str(tmp_path / "model"), "", "", settings):
            pass


def test_a_config_that_is_no_json(tmp_path: Path, settings: Settings) -> None:
    (write_hub_folder(tmp_path / "model") / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: expected JSON, got"):
        with served_model(str(tmp_path / "model"), "", "", settings):
            pass
