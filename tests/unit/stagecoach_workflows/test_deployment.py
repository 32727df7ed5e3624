"""What a cluster decides, read from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach_workflows.deployment import Deployment, load_deployment

DIGEST = "sha256:" + "a" * 64


def test_an_image_is_named_by_tag_by_digest_or_as_a_whole() -> None:
    deployment = Deployment(registry="r.example/x", images={"pack": DIGEST, "train": "other/train:1"})
    assert deployment.image("convert") == "r.example/x/stagecoach-convert:0.1.0"
    assert deployment.image("pack") == f"r.example/x/stagecoach-pack@{DIGEST}"
    assert deployment.image("train") == "other/train:1"


def test_an_unknown_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline"):
        Deployment().image("nobody")


def test_a_lock_file_of_images_wins_over_the_deployment(tmp_path: Path) -> None:
    deployment, images = tmp_path / "deployment.yaml", tmp_path / "images.lock.json"
    deployment.write_text("store: s3://bucket\nimages: {pack: one, shard: two}\n")
    images.write_text(json.dumps({"pack": DIGEST}))
    loaded = load_deployment(deployment, images)
    assert (loaded.store, loaded.images) == ("s3://bucket", {"pack": DIGEST, "shard": "two"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stor: x", "stor: Extra inputs are not permitted"),
        ("keep_days: soon", "keep_days"),
        ("resources: {train: {cpus: 3}}", "resources.train.cpus"),
        ("- 1", "expected a mapping"),
        ("a: [", "expected a readable YAML"),
    ],
)
def test_a_bad_file_is_refused_with_file_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_deployment(file)
    assert str(file) in str(caught.value)
