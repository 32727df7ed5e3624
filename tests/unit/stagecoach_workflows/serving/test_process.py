"""A server that does not come up is said at once, and nothing is left running."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError, UnavailableError
from stagecoach_workflows.serving.process import check_port, running
from stagecoach_workflows.serving.servers import Address

_SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pids", "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def address() -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address(host="127.0.0.1", port=probe.getsockname()[1])


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_it_and_its_workers_end_with_the_context(address: Address, tmp_path: Path) -> None:
    with running([sys.executable, "-c", _SERVER, str(address.port)], address, tmp_path, 30) as process:
        child = int((tmp_path / "pids").read_text())
        os.kill(child, 0)
    assert process.poll() is not None
    limit = time.monotonic() + 10
    while is_running(child):  # a killed process takes a moment to go
        assert time.monotonic() < limit, "the worker runs on"
        time.sleep(0.01)


def test_a_port_that_is_taken(address: Address) -> None:
    with socket.socket() as other:
        other.bind((address.host, address.port))
        other.listen()
        with pytest.raises(ConfigError, match="Address already in use; choose another --port"):
            check_port(address)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        check_port(Address(host="192.0.2.1", port=8000))


def test_a_server_that_ends(address: Address, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="ended with exit code 3 before it answered"):
        with running([sys.executable, "-c", "raise SystemExit(3)"], address, tmp_path, 30):
            pass


def test_a_server_that_says_nothing(address: Address, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"did not answer .*/health within 1 s; give --ready-seconds more"):
        with running([sys.executable, "-c", "import time; time.sleep(60)"], address, tmp_path, 1.0):
            pass


def test_a_program_that_is_not_there(address: Address, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the program no-such-server on PATH"):
        with running(["no-such-server"], address, tmp_path, 1):
            pass
