"""The Docker engine that builds the images: the one that runs, else a private one that is gone when the build ends.

A private engine needs root and Debian's ``docker.io``. It has a data folder and a socket of its own; no bridge,
iptables rule or service of the machine is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

START_SECONDS = 30.0
MAX_FOLDER_CHARACTERS = 104 - len("/exec/containerd/containerd-debug.sock")
"""containerd takes no socket whose path is longer than 104 characters."""


class BuildError(Exception):
    """The images cannot be built here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Docker engine and the client that speaks to it."""

    client: str
    """The docker program."""
    host: str | None
    """Address of a private engine; None is the client's own default."""

    def environ(self) -> dict[str, str]:
        """The environment of the client's processes."""
        environ = {**os.environ, "DOCKER_BUILDKIT": "1"}
        if self.host:
            environ["DOCKER_HOST"] = self.host
        return environ

    def run(self, *arguments: str | Path, stdin: IO[bytes] | None = None) -> None:
        """Run one docker command with its output shown.

        Raises:
            BuildError: It failed.
        """
        command = [self.client, *map(str, arguments)]
        result = subprocess.run(command, env=self.environ(), stdin=stdin, check=False)
        if result.returncode:
            raise BuildError(f"`{' '.join(command)}` failed with exit code {result.returncode}; its output is above")

    def ask(self, *arguments: str | Path) -> str | None:
        """Standard output of one docker command without its last newline, or None where it failed."""
        command = [self.client, *map(str, arguments)]
        result = subprocess.run(command, env=self.environ(), capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None


def clients() -> list[str]:
    """Docker programs on this machine that can use BuildKit, best first.

    A client of 23 or newer needs the buildx plug-in for it; Debian's 20.10 has it built in.
    """
    folders = os.environ.get("PATH", "").split(os.pathsep)
    found = dict.fromkeys(p for folder in folders if (p := shutil.which("docker", path=folder)))
    return [client for client in found if _has_buildkit(client)]


def _has_buildkit(client: str) -> bool:
    version = subprocess.run([client, "--version"], capture_output=True, text=True, check=False).stdout
    major = int(version.split("version ")[-1].split(".")[0]) if "version " in version else 0
    if major < 23:
        return major >= 20
    return subprocess.run([client, "buildx", "version"], capture_output=True, check=False).returncode == 0


@contextmanager
def docker_engine(data: Path) -> Iterator[Engine]:
    """The engine that answers, or a private one under ``data`` for as long as the context lasts.

    Raises:
        BuildError: There is neither an engine nor the means to start one.
    """
    usable = clients()
    if not usable:
        raise BuildError(
            "no docker with BuildKit was found: install docker.io (Debian 12), or docker with its buildx plug-in"
        )
    engine = Engine(usable[0], None)
    if engine.ask("version") is not None:
        yield engine
        return
    dockerd = shutil.which("dockerd")
    if dockerd is None or os.geteuid() != 0:
        raise BuildError(
            "no Docker engine answers and a private one needs root and dockerd: start Docker, or set DOCKER_HOST"
        )
    with _private_engine(usable[0], dockerd, data.absolute()) as private:  # addresses of sockets take no relative path
        yield private


@contextmanager
def _private_engine(client: str, dockerd: str, data: Path) -> Iterator[Engine]:
    if len(str(data)) > MAX_FOLDER_CHARACTERS:
        raise BuildError(
            f"{data}: expected a data folder of at most {MAX_FOLDER_CHARACTERS} characters, as the engine's sockets lie "
            f"in it, got {len(str(data))}; set STAGECOACH_DOCKER_DATA to a shorter one"
        )
    data.mkdir(parents=True, exist_ok=True)
    socket, pid_file = data / "docker.sock", data / "docker.pid"
    engine = Engine(client, f"unix://{socket}")
    if engine.ask("version") is not None:  # another build's, which ends it
        yield engine
        return
    pid_file.unlink(missing_ok=True)
    command = [dockerd, "--data-root", data / "data", "--exec-root", data / "exec", "--host", f"unix://{socket}"]
    command += ["--pidfile", pid_file, "--iptables=false", "--ip6tables=false", "--bridge=none"]
    with (data / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while engine.ask("version") is None:
            if process.poll() is not None or time.monotonic() > end:
                raise BuildError(f"the private Docker engine did not start: see {data / 'dockerd.log'}")
            time.sleep(0.2)
        yield engine
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if (data / "data").is_mount():  # dockerd's own, which it leaves where it could not start
            subprocess.run(["umount", str(data / "data")], check=False)


def debootstrap(engine: Engine, name: str, work: Path) -> None:
    """Make the base image ``name`` of Debian 12 with its Python 3.11 out of Debian's packages, for want of a registry.

    Raises:
        BuildError: debootstrap is missing, or it failed.
    """
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BuildError("the base image cannot be pulled, and making one needs root and debootstrap: set BASE_IMAGE")
    root = work / "base-root"
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", str(root)]
    with (work / "debootstrap.log").open("wb") as log:
        if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
            raise BuildError(f"debootstrap failed: see {work / 'debootstrap.log'}")
    for pattern in BASE_LEFT_OUT:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # Owners by number and one time for all: the same packages then give the same layer.
    tar = ["tar", "-C", str(root), "--sort=name", "--numeric-owner", "--mtime=@0", "--format=gnu", "-c", "."]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        engine.run("import", "-", name, stdin=packing.stdout)
    if packing.returncode:
        raise BuildError(f"tar of {root} failed with exit code {packing.returncode}")
    shutil.rmtree(root)


BASE_LEFT_OUT = (
    "dev/*",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "usr/share/doc/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "var/cache/apt/*",
    "var/cache/ldconfig/*",
    "var/cache/debconf/*-old",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/log/*",
)
"""What a base image does without: what differs from one debootstrap to the next, and documentation."""
