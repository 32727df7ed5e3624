"""The images that ``make images`` built, run by SLURM jobs of an ordinary user: with Podman and with Charliecloud."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest

from images.build import BUILD
from stagecoach.manifest import read_manifest
from stagecoach.paths import manifest_key
from stagecoach.plan_file import read_plan
from stagecoach.storage.local import LocalStore
from tests.slurm.cluster import SlurmCluster, is_root, missing_programs, running_slurm
from tests.slurm.conftest import RUN, WAIT_SECONDS

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

USER = "stagecoach-slurm"
IMAGES = Path(os.environ.get("STAGECOACH_TEST_IMAGES", BUILD))
"""Folder with ``images/`` and ``images.lock.json``."""
TASKS = {"download": ("download-model", "download-tokenizer", "download-data-demo"), "convert": ("convert",)}
TASKS |= {"shard": ("shard",), "pack": ("pack",), "train": ("train",), "export": ("export",)}
"""Tasks by image, in the order in which they read each other."""
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Podman's defaults want limits that a machine may not give, and crun refuses machines with both versions of cgroups."""


@dataclass(frozen=True, slots=True)
class Person:
    """An ordinary user of a cluster, with a home that others may enter."""

    cluster: SlurmCluster
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        """What containers without root need to know."""
        return {
            "HOME": str(self.home),
            "USER": USER,
            "XDG_RUNTIME_DIR": str(self.home / "runtime"),
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
        }

    def call(self, *command: str) -> str:
        """Call a program as this user; return what it wrote to standard output."""
        words = ["runuser", "--user", USER, "--", *command]
        environ = self.cluster.environ(**self.variables)
        done = subprocess.run(
            words, env=environ, cwd=self.home, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def own(self) -> None:
        """Give everything in the home to this user."""
        subprocess.run(["chown", "--recursive", f"{USER}:", str(self.home)], check=True)


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    """A cluster in a folder that every user may enter (pytest's own are closed), and a user who is there for the test."""
    missing = missing_programs()
    if missing or not is_root():
        pytest.skip(f"needs root and SLURM ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(mkdtemp(prefix="stagecoach-slurm-"))
    folder.chmod(0o755)
    home = folder / "home"
    try:
        subprocess.run(["useradd", "--create-home", "--home-dir", str(home), USER], check=True)
        with running_slurm(folder / "cluster") as cluster:
            person = Person(cluster, home)
            home.chmod(0o755)
            (home / "runtime").mkdir(mode=0o700)
            (home / "images").mkdir()
            (home / "containers.conf").write_text(CONTAINERS_CONF)
            person.own()
            yield person
            person.call("podman", "system", "migrate")  # ends the process that holds its name spaces
    finally:
        subprocess.run(["userdel", "--force", USER], check=False)
        shutil.rmtree(folder)


def built_images() -> dict[str, str]:
    """Return the references of the stages' images that are there, by image."""
    lock = IMAGES / "images.lock.json"
    names: dict[str, str] = json.loads(lock.read_text()) if lock.is_file() else {}
    return {image: names[image] for image in TASKS if image in names and (IMAGES / f"images/{image}.tar").is_file()}


def prepare(person: Person, runtime: str, image: str, reference: str) -> None:
    """Make an image known to a runtime, as the how-to says."""
    person.call("podman", "load", "--quiet", "--input", str(IMAGES / f"images/{image}.tar"))
    if runtime == "charliecloud":
        target = person.home / "images" / f"stagecoach-{image}"
        person.call("ch-convert", "-i", "podman", reference, str(target))


def scripts(person: Person, runtime: str, work: Path, store: Path, lock: Path = IMAGES / "images.lock.json") -> Path:
    """Render the scripts of the micro recipe and plan its run; return their folder."""
    environment = json.dumps(person.variables)
    (work / "slurm.yaml").write_text(
        f"{{runtime: {runtime}, images: {person.home}/images, environment: {environment}}}"
    )
    for arguments in (
        (
            "stagecoach_workflows",
            "render",
            "micro",
            "--runner=slurm",
            "--output=scripts",
            f"--images={lock}",
        ),
        ("stagecoach_workflows.plan", f"--run={RUN}", "--set=", "--workflow=test", "--created=0", "--runner=slurm"),
    ):
        recipe = work / "scripts/recipe.base64"
        given = [f"--recipe-base64={recipe.read_text().strip()}"] if recipe.is_file() else []
        command = [sys.executable, "-m", *arguments, f"--store={store}", *given]
        environ = person.cluster.environ(STAGECOACH_ARTIFACTS=str(work / "plan"))
        done = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return work / "scripts"


@pytest.mark.parametrize(("runtime", "program"), [("podman", "podman"), ("charliecloud", "ch-run")])
def test_the_stages_run_in_their_images_without_root(person: Person, runtime: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}, and images built with Docker: apt-get install podman runc uidmap charliecloud")
    images = built_images()
    if "download" not in images:
        pytest.skip(f"{IMAGES}/images/download.tar is not built (Docker): make images")
    if runtime == "charliecloud":  # unpacking takes minutes an image
        images = {image: name for image, name in images.items() if image in ("download", "convert")}
    work, store = person.home / runtime, person.home / f"{runtime}-store"
    (work / RUN / "logs").mkdir(parents=True)
    folder = scripts(person, runtime, work, store)
    person.own()
    for image, reference in images.items():
        prepare(person, runtime, image, reference)
    for task in (task for image in images for task in TASKS[image]):
        log = work / RUN / "logs" / f"{task}.log"
        output = read_plan(LocalStore(store), RUN).task(task).output
        assert read_manifest(LocalStore(store), output) is None
        try:
            person.call("sbatch", "--wait", f"--output={log}", str(folder / f"{task}.sbatch"), RUN, str(work / RUN))
        except AssertionError:
            pytest.fail(f"{task}: {log.read_text() if log.is_file() else 'no log'}")
        assert read_manifest(LocalStore(store), output) is not None, log.read_text()
        assert (store / manifest_key(output)).owner() == USER
        assert program in (folder / f"{task}.sbatch").read_text()


def test_a_missing_image_is_said_by_the_probe(person: Person) -> None:
    if shutil.which("podman") is None:
        pytest.skip("needs podman, which starts images built with Docker: apt-get install podman runc uidmap")
    work = person.home / "missing"
    (work / RUN / "logs").mkdir(parents=True)
    lock = work / "images.lock.json"
    lock.write_text(json.dumps(dict.fromkeys([*TASKS, "pipeline"], "localhost/stagecoach-nowhere:1")))
    folder = scripts(person, "podman", work, person.home / "missing-store", lock)
    person.own()
    log = work / RUN / "logs/probe.log"
    with pytest.raises(AssertionError):
        person.call("sbatch", "--wait", f"--output={log}", str(folder / "probe.sbatch"), RUN, str(work / RUN))
    assert (work / RUN / "probe/exit").read_text() == "66\n"
    said = log.read_text().splitlines()[-1]
    assert said.startswith("image localhost/stagecoach-nowhere:1 is neither on this node nor in its registry"), said
