"""Starts a model server, waits until it answers, and ends it: nothing is left running behind the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach.settings import child_environ
from stagecoach_workflows.serving.servers import Address

_GRACE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2


def check_port(address: Address) -> None:
    """Refuse an address that nobody can listen on.

    Raises:
        ConfigError: It is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConfigError(
                f"serve: cannot listen on {address.host}:{address.port}: {error.strerror}; choose another --port or --host"
            ) from error


@contextmanager
def running(
    command: Sequence[str], address: Address, folder: Path, ready_seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context ends; it is entered once the server answers.

    Args:
        command: The server's words.
        address: Where it will listen.
        folder: Its working folder.
        ready_seconds: How long loading may take.

    Raises:
        ConfigError: The port is taken, or the program is gone.
        UnavailableError: The server ended, or did not answer in time.
    """
    check_port(address)
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            env=child_environ(HF_HUB_OFFLINE="1"),
            start_new_session=True,  # Ctrl-C comes to us alone, and we end all of it
        )
    except FileNotFoundError as error:
        raise ConfigError(f"serve: expected the program {command[0]} on PATH") from error
    try:
        _wait_until_ready(process, address, ready_seconds)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a server and its workers to end; kill what is left after ten seconds."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def _wait_until_ready(process: subprocess.Popen[bytes], address: Address, ready_seconds: float) -> None:
    deadline = time.monotonic() + ready_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(
                f"serve: the server ended with exit code {process.returncode} before it answered; its own words stand above"
            )
        try:
            with urllib.request.urlopen(f"{address.url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_PAUSE_SECONDS)
    raise UnavailableError(
        f"serve: the server did not answer {address.url}/health within {ready_seconds:.0f} s; give --ready-seconds more"
    )
