"""Docker and the built images: the same workflow gives the bits of the local runner, and a shell is one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from images.engine import BuildError, docker_engine
from stagecoach.settings import child_environ
from stagecoach_workflows.shells import docker_shell
from tests.architecture.source_tree import ROOT
from tests.terminal import in_terminal

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


def test_a_shell_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made in it belongs to the user, here to one who is not root."""
    archive = ROOT / "build/images/pack.tar"
    if not archive.is_file():
        pytest.skip("needs Docker and built images: make images")
    os.chown(tmp_path, 4321, 4321)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(os, "getgid", lambda: 4321)
    words = docker_shell(json.loads(LOCK.read_text())["pack"], tmp_path, 0)
    typed = 'echo "[$(id -u)] [$PWD] $(python -c "import stagecoach_pack as it; print(it.__name__)")" > made; exit 7\n'
    try:
        with docker_engine(ROOT / "build/docker") as engine:
            engine.run("load", "--quiet", "--input", archive)
            shown, code = in_terminal(words, typed, engine.environ(), tmp_path, 120)
    except BuildError as error:
        pytest.skip(f"needs Docker: {error}")
    made = tmp_path / "made"
    assert code == 7, shown
    assert made.read_text() == f"[4321] [{tmp_path}] stagecoach_pack\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (4321, 4321)
