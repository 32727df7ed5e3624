"""The images that `make images` built: small enough, as a number, with nothing where it does not belong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from images.archive import Image, compressed_bytes, layer_files, read_image
from images.build import BUILD, IMAGES, LOCK_FILE
from images.engine import BuildError, Engine, docker_engine
from images.sbom import packages_of
from tests.architecture.source_tree import ROOT

pytestmark = pytest.mark.images

STARTS = 3


def built(image: str) -> Path:
    path = BUILD / "images" / f"{image}.tar"
    if not path.is_file():
        pytest.skip(f"{path} is not built (Docker): make images IMAGES={image}")
    return path


@cache
def compressed_layers(path: Path) -> list[int]:
    """Compressed bytes of each layer, base first."""
    return [compressed_bytes(stream) for _, stream in layer_files(path)]


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> tuple[str, Image]:
    return request.param, read_image(built(request.param))


def test_it_is_within_its_budget(image: tuple[str, Image], capsys: pytest.CaptureFixture[str]) -> None:
    """The base is the first layer; everything above it is the stage."""
    name, _ = image
    budget = tomllib.loads((ROOT / "images/budgets.toml").read_text())[name]
    sizes = compressed_layers(BUILD / "images" / f"{name}.tar")
    stage, total = sum(sizes[1:]) / 1e6, sum(sizes) / 1e6
    with capsys.disabled():
        print(f"\n{name}: {stage:.1f} MB of {budget['stage']}, with its base {total:.1f} MB of {budget['total']}")
    assert stage <= budget["stage"]
    assert total <= budget["total"]


def test_it_runs_as_a_number_with_labels(image: tuple[str, Image]) -> None:
    name, built_image = image
    config = built_image.config["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/opt/stagecoach/bin/stage"]
    assert config["Labels"]["org.opencontainers.image.title"] == f"stagecoach-{name}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_lock_names_it_by_its_content(image: tuple[str, Image]) -> None:
    name, built_image = image
    reference = json.loads(LOCK_FILE.read_text())[name]
    assert re.search(r"(:[0-9a-f]{12}|@sha256:[0-9a-f]{64})$", reference)
    if reference.startswith("localhost/"):
        assert reference == built_image.name


def test_it_holds_what_its_lock_says_and_no_installer(image: tuple[str, Image]) -> None:
    name, _ = image
    lock = (ROOT / f"images/requirements/{name}.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9_.-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE))
    held = {p.name: p.version for p in packages_of(BUILD / "images" / f"{name}.tar") if p.kind == "pypi"}
    own = {package for package in held if package.startswith("stagecoach")}
    assert {package: held.get(package) for package in locked} == locked
    assert set(held) - set(locked) - own == set()
    assert own == {"stagecoach", "stagecoach-workflows" if name == "pipeline" else f"stagecoach-{name}"}


def test_only_train_has_a_compiler_and_torch(image: tuple[str, Image]) -> None:
    name, _ = image
    paths: set[str] = set()
    for _, stream in layer_files(BUILD / "images" / f"{name}.tar"):
        with tarfile.open(fileobj=stream, mode="r:") as layer:
            paths |= {member.name.removeprefix("./") for member in layer}
    assert ("usr/bin/gcc" in paths) is (name == "train")
    assert any("site-packages/torch/" in path for path in paths) is (name == "train")
    assert not any(path.endswith(("bin/pip", "bin/uv")) for path in paths)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with docker_engine(Path(os.environ.get("STAGECOACH_DOCKER_DATA", BUILD / "docker"))) as running:
        yield running


def start_seconds(engine: Engine, *command: str) -> float:
    """Shortest of a few starts of a container that runs ``command`` with nothing writable and no network."""
    best = float("inf")
    for _ in range(STARTS):
        start = time.monotonic()
        engine.run("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", *command)
        best = min(best, time.monotonic() - start)
    return best


@pytest.mark.parametrize("name", IMAGES)
def test_it_starts_within_a_second_of_the_bare_interpreter(name: str, engine: Engine) -> None:
    built(name)
    reference = json.loads(LOCK_FILE.read_text())[name]
    bare = start_seconds(engine, "--entrypoint=/opt/venv/bin/python", reference, "-c", "pass")
    stage = start_seconds(engine, reference, "--help")
    assert stage - bare <= 1.0


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder of its own whose path leaves room for an engine's sockets, which ``tmp_path`` does not."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        yield Path(folder)


def test_a_private_engine_starts_under_a_relative_folder(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``STAGECOACH_DOCKER_DATA=build/docker`` names it."""
    monkeypatch.chdir(short_folder)
    with docker_engine(Path("docker")) as private:
        assert private.ask("info", "--format", "{{.DockerRootDir}}") is not None


@pytest.fixture
def shard_kept(short_folder: Path) -> Iterator[None]:
    """The archive and the lock as they were, after a build of ``shard`` wrote its own."""
    archive, lock = built("shard"), LOCK_FILE.read_bytes()
    kept = shutil.copy2(archive, short_folder)
    yield
    shutil.copy2(kept, archive)
    LOCK_FILE.write_bytes(lock)


@pytest.mark.usefixtures("shard_kept")
def test_two_builds_give_equal_layers(short_folder: Path) -> None:
    """From an empty cache each: one engine's data folder is thrown away before the other build."""
    before = read_image(built("shard"))
    environ = {**os.environ, "STAGECOACH_DOCKER_DATA": str(short_folder / "docker")}
    subprocess.run([sys.executable, "-m", "images.build", "shard"], cwd=ROOT, env=environ, check=True)
    after = read_image(built("shard"))
    assert [layer.diff_id for layer in after.layers] == [layer.diff_id for layer in before.layers]


def test_a_folder_too_deep_for_the_engines_sockets_is_refused_in_words(short_folder: Path) -> None:
    with pytest.raises(BuildError, match="expected a data folder of at most 66 characters"):
        with docker_engine(short_folder / ("a" * 60)):
            pass
