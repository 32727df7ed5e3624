"""Rank processes: started with the usual variables, ended together, and the first cause named."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import (
    AcceleratorError,
    ConfigError,
    DataError,
    InterruptedWithProgress,
    StagecoachError,
    UnavailableError,
)
from stagecoach.settings import Settings
from stagecoach_train.launcher import Launcher, World
from stagecoach_train.signals import StopRequest

HEADER = """
import json, os, signal, socket, sys, time
rank = int(os.environ["RANK"])
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def fail(code, sentence):
    open(arguments["--failure"], "w").write(json.dumps({"exit_code": code, "sentence": sentence}))
    sys.exit(code)
"""


def launcher(script: str, folder: Path, ranks: int = 2, stop: StopRequest | None = None) -> Launcher:
    command = [sys.executable, "-c", HEADER + script]
    return Launcher(command, World(ranks, 0, ranks), folder, stop or StopRequest(), threads_per_rank=3)


def log_of(folder: Path, rank: int) -> str:
    return (folder / f"rank-{rank:05d}.log").read_text()


class TestStart:
    """Breaks if a rank could tell our launcher from another one."""

    def test_ranks_get_the_usual_variables(self, tmp_path: Path) -> None:
        names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
        launcher(f"print(*(os.environ[n] for n in '{names}'.split()))", tmp_path).run()
        assert [log_of(tmp_path, rank).split() for rank in (0, 1)] == [
            ["0", "0", "2", "127.0.0.1", "3"],
            ["1", "1", "2", "127.0.0.1", "3"],
        ]

    def test_rank_0_inherits_the_listening_socket(self, tmp_path: Path) -> None:
        script = """
if rank == 0:
    socket.socket(fileno=int(arguments["--listen-descriptor"])).accept()[0].sendall(b"met")
else:
    time.sleep(0.1)
    print(socket.create_connection(("127.0.0.1", int(os.environ["MASTER_PORT"]))).recv(3).decode())
"""
        launcher(script, tmp_path).run()
        assert log_of(tmp_path, 1) == "met\n"

    def test_several_machines_need_a_place_to_meet(self) -> None:
        with pytest.raises(ConfigError, match="expected MASTER_ADDR and MASTER_PORT"):
            World.of(Settings(), world_size=4, nodes=2)
        second = Settings(main_address="node-0", main_port=29500, node_rank=1)
        assert World.of(second, world_size=4, nodes=2) == World(4, 2, 2, "node-0", 29500)


class TestFailure:
    """Breaks if a failure hangs, is blamed on a victim, or loses its exit code."""

    @pytest.mark.parametrize("helper", [False, True])
    def test_the_first_failure_ends_the_others_within_10_seconds_and_names_rank_and_cause(
        self, helper: bool, tmp_path: Path
    ) -> None:
        """Also where each rank leaves a helper behind that holds its output open, as compilers do."""
        script = f"""
import subprocess
if {helper}: subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
if rank != 1:
    time.sleep(60)
open("failed", "w").write(str(time.time()))
fail(79, "row 7 has no role")
"""
        with pytest.raises(DataError, match="rank 1 of 4: row 7 has no role"):
            launcher(script.replace('"failed"', repr(str(tmp_path / "failed"))), tmp_path, ranks=4).run()
        assert time.time() - float((tmp_path / "failed").read_text()) < 10

    def test_a_killed_rank_is_named_and_not_the_one_that_lost_it(self, tmp_path: Path) -> None:
        script = """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
fail(71, "connection closed by peer")
"""
        with pytest.raises(AcceleratorError, match=r"rank 1 of 2: was ended by SIGKILL \(out of memory"):
            launcher(script, tmp_path).run()

    def test_a_crash_without_a_report_shows_its_last_line(self, tmp_path: Path) -> None:
        with pytest.raises(StagecoachError, match="rank 0 of 2: ended with exit code 3: something odd"):
            launcher("if rank == 0: print('something odd'); sys.exit(3)", tmp_path).run()

    def test_a_rank_that_could_not_write_its_report_keeps_code_and_sentence(self, tmp_path: Path) -> None:
        """The full disk that ended it may be the one that takes the report: what comes of it is an empty file."""
        script = """
open(arguments["--failure"], "w").close()
print("/scratch: no space left")
sys.exit(69)
"""
        with pytest.raises(UnavailableError, match=r"rank 0 of 1: /scratch: no space left"):
            launcher(script, tmp_path, ranks=1).run()

    @pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"exit_code": "x", "sentence": ""}'])
    def test_a_damaged_report_of_a_crash_shows_its_last_line(self, damage: str, tmp_path: Path) -> None:
        script = f"open(arguments['--failure'], 'w').write({damage!r}); print('something odd'); sys.exit(3)"
        with pytest.raises(StagecoachError, match="rank 0 of 1: ended with exit code 3: something odd"):
            launcher(script, tmp_path, ranks=1).run()

    def test_a_disk_without_room_for_a_log_stops_no_rank(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Were its output no longer read, a rank would wait in its next line for ever; a pipe takes 64 KiB."""
        (tmp_path / "rank-00000.log").symlink_to("/dev/full")
        (tmp_path / "rank-00001.log").mkdir()  # cannot even be opened
        launcher("for line in range(3000): print('a line of a step', line, rank, '.' * 60)", tmp_path).run()
        shown = capsys.readouterr().err
        assert "a line of a step 2999 0 " in shown
        assert "[rank 1] a line of a step 2999 1 " in shown
        assert caplog.text.count("No space left on device") == 1  # said once

    def test_a_line_that_a_disk_takes_in_part_is_a_line_that_lacks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The last free bytes of a disk take the beginning of a line, without an error."""

        class Short(FileIO):
            def write(self, data: Any) -> int:
                return super().write(data[:5])

        monkeypatch.setattr("stagecoach_train.launcher.FileIO", Short)
        launcher("print('a whole line')", tmp_path, ranks=1).run()
        assert "lacks lines from here on: the disk took only the beginning of a line" in caplog.text

    def test_ranks_see_the_end_of_their_launcher(self, tmp_path: Path) -> None:
        """The launcher is killed in a process of its own; its rank must notice."""
        script = "print(os.getpid(), flush=True); sys.stdin.buffer.read(); open('gone', 'w').close()"
        program = f"""
import sys
from pathlib import Path
from tests.unit.stagecoach_train.test_launcher import launcher
launcher({script!r}, Path('.'), ranks=1).run()
"""
        import subprocess

        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        try:
            _wait_for(lambda: (tmp_path / "rank-00000.log").exists() and log_of(tmp_path, 0).endswith("\n"))
        finally:
            process.kill()
            process.wait()
        _wait_for((tmp_path / "gone").exists)


class TestStop:
    """Breaks if a stop is not passed on, or an orderly end counts as a failure."""

    def test_a_stop_is_passed_on_and_ranks_may_save(self, tmp_path: Path) -> None:
        script = """
signal.signal(signal.SIGTERM, lambda *_: fail(75, "saved") if rank == 0 else (time.sleep(0.5), fail(75, "late")))
print("ready", flush=True)
time.sleep(60)
"""
        stop = StopRequest()
        waiting = launcher(script, tmp_path, stop=stop)

        def request() -> None:
            _wait_for(lambda: all((tmp_path / f"rank-0000{r}.log").exists() and log_of(tmp_path, r) for r in (0, 1)))
            stop.request("SIGTERM arrived")

        thread = threading.Thread(target=request)
        thread.start()
        with pytest.raises(InterruptedWithProgress, match="saved"):
            waiting.run()
        thread.join()

    def test_a_rank_that_was_not_listening_yet_counts_as_interrupted(self, tmp_path: Path) -> None:
        with pytest.raises(InterruptedWithProgress, match="stopped before its first new step"):
            launcher(f"os.kill(os.getpid(), {int(signal.SIGTERM)})", tmp_path, ranks=1).run()


def _wait_for(condition: object, seconds: float = 20.0) -> None:
    limit = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)
