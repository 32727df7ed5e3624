"""What the download tasks are told: only the files' content is in the key, and no path leads out of the output."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stagecoach.keys import content_key
from stagecoach.recipe.base import result_fields
from stagecoach.recipe.download import DownloadDataConfig, DownloadModelConfig, ResolvedFile
from stagecoach.recipe.seed import SeedModel

SHA = "ab" * 32
FILE = {"path": "config.json", "size_bytes": 3, "sha256": SHA}


def model_config(**changes: Any) -> DownloadModelConfig:
    values = {"source": {"kind": "hub", "repo": "a/b"}, "commit": "c" * 40, "files": [FILE], **changes}
    return DownloadModelConfig.model_validate(values)


def test_the_place_is_recorded_but_not_part_of_the_key() -> None:
    moved = model_config(source={"kind": "directory", "path": "/data"}, commit=None)
    assert result_fields(moved) == {"files": [FILE]}
    assert content_key("download-model", 1, moved, {}) == content_key("download-model", 1, model_config(), {})


def test_a_new_model_card_does_not_change_the_key() -> None:
    card = {"path": "README.md", "size_bytes": 9, "git_blob_sha1": "a" * 40}
    assert result_fields(model_config(documents=[card])) == result_fields(model_config())


def test_other_content_is_another_key() -> None:
    assert result_fields(model_config(files=[{**FILE, "sha256": "cd" * 32}])) != result_fields(model_config())


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a\\b", "a\nb", "./a"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="expected a relative path"):
        ResolvedFile(path=path, size_bytes=1, sha256=SHA)


def test_a_file_without_any_identity_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected a sha256, a git blob id or an ETag"):
        ResolvedFile(path="a", size_bytes=1)


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"config\.json more than once"):
        model_config(files=[FILE, FILE])


def test_data_without_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        DownloadDataConfig.model_validate({"source": {"kind": "embedded"}, "files": []})


def test_seed_models_with_impossible_heads_are_refused() -> None:
    with pytest.raises(ValidationError, match="hidden_size 100 over num_heads 3"):
        SeedModel(hidden_size=100, num_heads=3, num_kv_heads=1)
    with pytest.raises(ValidationError, match="num_heads 4 is no multiple of num_kv_heads 3"):
        SeedModel(num_heads=4, num_kv_heads=3)
    assert SeedModel().head_dim == 32
