"""The Docker runner executes the same workflow in the built images and gets the same bits as the local runner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from images.engine import BuildError, docker_engine
from stagecoach.settings import child_environ
from tests.architecture.source_tree import ROOT

LOCK = ROOT / "build/images.lock.json"

pytestmark = [pytest.mark.images, pytest.mark.slow]


def run(work: Path, environ: dict[str, str], *more: str) -> None:
    command = [
        sys.executable,
        "-m",
        "stagecoach_workflows",
        "run",
        "micro",
        "--work",
        str(work),
        "--retries",
        "0",
        *more,
    ]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def weights(work: Path) -> dict[str, str]:
    """Digest of every file of weights, by task and name."""
    manifests = [json.loads(file.read_text()) for file in (work / "store").rglob("manifest.json")]
    return {
        f"{manifest['task']} {name}": entry["sha256"]
        for manifest in manifests
        for name, entry in manifest["objects"].items()
        if name.endswith(".safetensors")
    }


def test_the_same_bits_in_containers(tmp_path: Path) -> None:
    if not LOCK.is_file():
        pytest.skip("needs Docker and built images: make images")
    try:
        with docker_engine(ROOT / "build/docker") as engine:
            run(tmp_path / "docker", engine.environ(), "--runner", "docker", "--images", str(LOCK))
    except BuildError as error:
        pytest.skip(f"needs Docker: {error}")
    run(tmp_path / "local", child_environ())
    assert weights(tmp_path / "docker") == weights(tmp_path / "local")
    assert len(weights(tmp_path / "local")) >= 4
