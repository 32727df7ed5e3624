"""An S3 prefix as a source, against a real server: planned by ETag, read exactly as planned."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from stagecoach.errors import CorruptObjectError, MissingInputError
from stagecoach.outputs import Output
from stagecoach.recipe.source import HubSource, S3Source
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing, data_config, model_config
from stagecoach.storage.memory import MemoryStore
from stagecoach.storage.s3 import S3Store
from stagecoach_download.run import run
from tests.seaweed import SeaweedServer


def no_hub(source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
    raise AssertionError("the Hub was asked")


@pytest.fixture
def bucket(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    seaweed.use(monkeypatch)
    store = seaweed.store()
    for name, data in {"config.json": b"{}", "model.safetensors": b"w" * 1000, "x/rows.jsonl": b"[]\n"}.items():
        store.put(name, data)
    return store


def test_a_model_is_brought_from_a_prefix(bucket: S3Store, tmp_path: Path) -> None:
    settings = Settings.from_environ()
    config = model_config(S3Source(url=bucket.url), settings, no_hub)
    assert [(file.path, file.size_bytes, file.sha256) for file in config.files] == [
        ("config.json", 2, None),
        ("model.safetensors", 1000, None),
    ]
    target = MemoryStore("out")
    output = Output(target, "p/", tmp_path)
    run(config, {}, output, target)
    assert {name: target.get(entry.path)[:3] for name, entry in output.objects.items()} == {
        "config.json": b"{}",
        "model.safetensors": b"www",
    }


def test_an_object_that_changed_after_the_plan_is_refused(bucket: S3Store, tmp_path: Path) -> None:
    config = data_config(S3Source(url=bucket.url, files=("x/*",)), Settings.from_environ(), no_hub)
    bucket.put("x/rows.jsonl", b"{}\n")
    target = MemoryStore("out")
    with pytest.raises(CorruptObjectError, match=r"x/rows\.jsonl: expected ETag"):
        run(config, {}, Output(target, "p/", tmp_path), target)
    assert list(target.list("")) == []


def test_an_empty_prefix_is_named(bucket: S3Store) -> None:
    with pytest.raises(MissingInputError, match="nothing-here/: expected objects under this prefix, found none"):
        data_config(S3Source(url=f"{bucket.url}/nothing-here"), Settings.from_environ(), no_hub)
