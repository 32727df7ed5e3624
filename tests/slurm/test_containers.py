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
from stagecoach.paths import finished_prefix, manifest_key
from stagecoach.plan_file import read_plan
from stagecoach.records import read_numbered
from stagecoach.settings import child_environ
from stagecoach.storage.local import LocalStore
from tests.slurm.cluster import SlurmCluster, is_root, missing_programs, running_slurm
from tests.slurm.conftest import RUN, WAIT_SECONDS

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

USER = "stagecoach-slurm"
IMAGES = Path(os.environ.get("STAGECOACH_TEST_IMAGES", BUILD))
"""Folder with ``images/`` and ``images.lock.json``."""
TASKS = {"download": ("download-model", "download-tokenizer", "download-data-demo"), "convert": ("convert",)}
TASKS |= {"shard": ("shard",), "pack": ("pack",), "train": ("train",), "export": ("export",), "pipeline": ("notify",)}
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
STORAGE_CONF = '[storage]\ndriver = "overlay"\n'
"""Without it Podman takes fuse-overlayfs, or where that cannot be used a copy of the whole image for each layer."""


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
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
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
            (home / "storage.conf").write_text(STORAGE_CONF)
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


def has_room(person: Person, image: str) -> bool:
    """Whether an image can be unpacked: Podman keeps a copy of its largest layer beside what it unpacks."""
    return shutil.disk_usage(person.home).free > 3 * (IMAGES / f"images/{image}.tar").stat().st_size


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
    missing = sorted(set(TASKS) - {"train", *images})
    if missing:
        pytest.skip(f"{IMAGES}/images/{missing[0]}.tar is not built (Docker): make images")
    # unpacking for Charliecloud takes minutes an image
    stages = ("download", "convert") if runtime == "charliecloud" else tuple(TASKS)
    work, store = person.home / runtime, person.home / f"{runtime}-store"
    (work / RUN / "logs").mkdir(parents=True)
    (work / RUN / "jobs").write_text("export\t1\n")
    folder = scripts(person, runtime, work, store)
    person.own()
    without = []
    for stage in stages:
        if stage not in images or not has_room(person, stage):
            without.append(stage)
            run_here(stage, store)
            person.own()
            continue
        prepare(person, runtime, stage, images[stage])
        for task in TASKS[stage]:
            run_job(person, folder / f"{task}.sbatch", work / RUN, store)
            assert program in (folder / f"{task}.sbatch").read_text()
    if runtime == "podman":
        assert [record["state"] for record in read_numbered(LocalStore(store), finished_prefix(RUN)).values()] == [
            "succeeded"
        ]
    if without:
        pytest.skip(
            f"ran without their images: {', '.join(without)} (not built with Docker, or the disk has no room for"
            " three times the image); all others ran in theirs"
        )


def run_job(person: Person, script: Path, run_folder: Path, store: Path) -> None:
    """Run a task as a job; its output has to be there afterwards, written by the user (notify has none)."""
    task = script.stem
    log = run_folder / "logs" / f"{task}.log"
    output = read_plan(LocalStore(store), RUN).task(task).output if task != "notify" else None
    assert output is None or read_manifest(LocalStore(store), output) is None
    # one of them on the spot, as people do who look for an error
    words = ("bash",) if task == "shard" else ("sbatch", "--wait", f"--output={log}")
    try:
        person.call(*words, str(script), RUN, str(run_folder))
    except AssertionError as error:
        pytest.fail(f"{task}: {error} {log.read_text() if log.is_file() else 'no log'}")
    if output is not None:
        assert read_manifest(LocalStore(store), output) is not None, task
        assert (store / manifest_key(output)).owner() == USER


def run_here(stage: str, store: Path) -> None:
    """Run a stage without its image, for the stages that read what it makes."""
    for task in TASKS[stage]:
        command = [sys.executable, "-m", f"stagecoach_{stage}", f"--store={store}", f"--run={RUN}", f"--task={task}"]
        subprocess.run(command, check=True, env=child_environ(OMP_NUM_THREADS="1"))


def test_a_missing_image_is_said_by_the_probe(person: Person) -> None:
    if shutil.which("podman") is None:
        pytest.skip("needs podman, which starts images built with Docker: apt-get install podman runc uidmap")
    work = person.home / "missing"
    (work / RUN / "logs").mkdir(parents=True)
    lock = work / "images.lock.json"
    lock.write_text(json.dumps(dict.fromkeys(TASKS, "localhost/stagecoach-nowhere:1")))
    folder = scripts(person, "podman", work, person.home / "missing-store", lock)
    person.own()
    log = work / RUN / "logs/probe.log"
    with pytest.raises(AssertionError):
        person.call("sbatch", "--wait", f"--output={log}", str(folder / "probe.sbatch"), RUN, str(work / RUN))
    assert (work / RUN / "probe/exit").read_text() == "66\n"
    said = log.read_text().splitlines()[-1]
    assert said.startswith("image localhost/stagecoach-nowhere:1 is neither on this node nor in its registry"), said
