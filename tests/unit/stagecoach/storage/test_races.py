"""Processes that put the same key at once: exactly one hears that it is the first, and its bytes are the ones there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stagecoach.settings import child_environ

if TYPE_CHECKING:
    from tests.seaweed import SeaweedServer

NUM_PROCESSES = 3
NUM_ROUNDS = 20

RACER = """
import sys, time
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store

store, me, rounds = open_store(sys.argv[1], Settings.from_environ()), sys.argv[2], int(sys.argv[3])
store.put("ready/" + me, b"")
sys.stdin.readline()
print("".join("1" if store.put_if_absent(f"race/{n}", me.encode()) else "0" for n in range(rounds)))
"""


def race(url: str, environ: dict[str, str]) -> list[str]:
    """Run the racers, started together; returns each one's line of wins."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(me), str(NUM_ROUNDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environ(**environ),
        )
        for me in range(NUM_PROCESSES)
    ]  # fmt: skip
    lines = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        lines.append(out.strip())
    return lines


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_of_several_processes_exactly_one_wins_each_round(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environ: dict[str, str] = {}
    url = str(tmp_path / "store")
    if kind == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_environment")
        url, environ = f"{server.url}/t-race-{tmp_path.name}", server.environ()
    lines = race(url, environ)
    assert [len(line) for line in lines] == [NUM_ROUNDS] * NUM_PROCESSES
    assert [sum(line[n] == "1" for line in lines) for n in range(NUM_ROUNDS)] == [1] * NUM_ROUNDS
    from stagecoach.settings import Settings
    from stagecoach.storage.open import open_store

    store = open_store(url, Settings.from_environ())
    winners = [next(me for me, line in enumerate(lines) if line[n] == "1") for n in range(NUM_ROUNDS)]
    assert [int(store.get(f"race/{n}")) for n in range(NUM_ROUNDS)] == winners
