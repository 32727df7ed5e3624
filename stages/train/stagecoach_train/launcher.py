"""Starts one process a rank, passes signals on, and ends them all within seconds of the first failure, naming its
cause.

    stage process --+-- rank 0   python -m stagecoach_train.worker --job FILE --failure FILE
                    +-- rank 1   ..

Each rank gets the usual variables (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), so that a rank cannot
tell this launcher from another one. On a single machine the rendezvous socket is opened here, on a free port, and
inherited by rank 0: no port can be lost to somebody else between choosing and using it. A rank's standard input is a
pipe that nobody writes to; its end tells the rank that this process is gone.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from stagecoach.errors import (
    AcceleratorError,
    ConfigError,
    DataError,
    InterruptedWithProgress,
    MissingInputError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.settings import Settings, child_environ
from stagecoach_train.signals import StopRequest

GRACE_SECONDS = 3.0
SAVING_GRACE_SECONDS = 60.0
LAST_LINES_SECONDS = 2.0
_POLL_SECONDS = 0.05
_TAIL_LINES = 30
_ASKED_TO_STOP = (-signal.SIGTERM, -signal.SIGINT)

_ERROR_OF_CODE: dict[int, type[StagecoachError]] = {
    error.exit_code: error
    for error in (
        ConfigError,
        DataError,
        MissingInputError,
        UnavailableError,
        AcceleratorError,
        InterruptedWithProgress,
    )
}

_log = logging.getLogger("stagecoach.train")


@dataclass(frozen=True, slots=True)
class World:
    """Which ranks this machine starts, and where all ranks meet.

    Attributes:
        size: Ranks of the whole training.
        first_rank: Rank of this machine's first process.
        local_size: Processes on this machine.
        address: Host name of rank 0's machine.
        port: Its rendezvous port; None takes a free one (single machine only).
    """

    size: int
    first_rank: int
    local_size: int
    address: str = "127.0.0.1"
    port: int | None = None

    @classmethod
    def of(cls, settings: Settings, world_size: int, nodes: int) -> World:
        """Place the ranks of a layout on ``nodes`` machines.

        Raises:
            ConfigError: Several machines, but the environment does not say where they meet or which one this is.
        """
        if nodes == 1:
            return cls(world_size, 0, world_size)
        if settings.main_address is None or settings.main_port is None:
            raise ConfigError(
                f"train.nodes is {nodes}: expected MASTER_ADDR and MASTER_PORT in the environment of each machine"
            )
        if settings.node_rank >= nodes:
            raise ConfigError(
                f"STAGECOACH_NODE_RANK: expected 0 to {nodes - 1} for {nodes} nodes, got {settings.node_rank}"
            )
        local = world_size // nodes
        return cls(world_size, settings.node_rank * local, local, settings.main_address, settings.main_port)


@dataclass(slots=True)
class _RankProcess:
    rank: int
    process: subprocess.Popen[bytes]
    failure_file: Path
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    reader: threading.Thread | None = None
    code: int | None = None
    ended_seconds: float = 0.0


class _RankLog:
    """A rank's log file. A disk without room costs lines of it, never the rank: a rank whose output nobody reads any
    more waits in it for ever.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._lacks_lines = False

    def write(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = FileIO(self._path, "w")
            if self._file.write(line) != len(line):
                raise OSError("the disk took only the beginning of a line")
        except OSError as error:
            if not self._lacks_lines:
                _log.warning("%s lacks lines from here on: %s", self._path, error)
            self._lacks_lines = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Launcher:
    """The rank processes of this machine."""

    def __init__(
        self,
        command: Sequence[str],
        world: World,
        folder: Path,
        stop: StopRequest,
        *,
        threads_per_rank: int,
    ) -> None:
        """Prepare.

        Args:
            command: What every rank runs; ``--failure FILE`` is added.
            world: Which ranks to start.
            folder: Where logs by rank and failure reports go.
            stop: When it asks for a stop, the ranks get SIGTERM.
            threads_per_rank: CPU threads of each rank.
        """
        self._command = list(command)
        self._world = world
        self._folder = folder
        self._stop = stop
        self._variables = {"OMP_NUM_THREADS": str(threads_per_rank), "MKL_NUM_THREADS": str(threads_per_rank)}
        self._ranks: list[_RankProcess] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Start the ranks and wait for the last one.

        Raises:
            StagecoachError: A rank failed; the class carries its exit code, the sentence its rank and cause.
            InterruptedWithProgress: The ranks were asked to stop and did.
        """
        self._start()
        told = False
        try:
            while any(rank.code is None for rank in self._ranks):
                if self._stop.reason is not None and not told:
                    self._signal(signal.SIGTERM)
                    told = True
                self._poll()
                if any(rank.code for rank in self._ranks):
                    self._end_others()
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            self._kill_all()
        self._raise_first_failure()

    def _start(self) -> None:
        listener = self._listen() if self._world.port is None else None
        port = listener.getsockname()[1] if listener is not None else self._world.port
        try:
            for local in range(self._world.local_size):
                self._ranks.append(self._spawn(local, int(port or 0), listener))
        except BaseException:
            self._kill_all()
            raise
        finally:
            if listener is not None:
                listener.close()

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.bind((self._world.address, 0))
        listener.listen(max(128, self._world.size))
        return listener

    def _spawn(self, local: int, port: int, listener: socket.socket | None) -> _RankProcess:
        rank = self._world.first_rank + local
        failure_file = self._folder / f"rank-{rank:05d}.failure.json"
        failure_file.unlink(missing_ok=True)
        inherited = [listener.fileno()] if listener is not None and rank == 0 else []
        process = subprocess.Popen(
            [
                *self._command,
                "--failure",
                str(failure_file),
                *(["--listen-descriptor", str(inherited[0])] if inherited else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            env=child_environ(
                RANK=str(rank),
                LOCAL_RANK=str(local),
                WORLD_SIZE=str(self._world.size),
                LOCAL_WORLD_SIZE=str(self._world.local_size),
                MASTER_ADDR=self._world.address,
                MASTER_PORT=str(port),
                PYTHONUNBUFFERED="1",
                **self._variables,
            ),
        )
        started = _RankProcess(rank, process, failure_file)
        started.reader = threading.Thread(target=self._copy_log, args=(started,), name=f"log-{rank}", daemon=True)
        started.reader.start()
        return started

    def _copy_log(self, rank: _RankProcess) -> None:
        """Copy a rank's lines to its log file and to our standard error; all but rank 0 carry their number there."""
        mark = "" if rank.rank == 0 else f"[rank {rank.rank}] "
        log = _RankLog(self._folder / f"rank-{rank.rank:05d}.log")
        for line in rank.process.stdout or ():
            log.write(line)
            text = line.decode("utf-8", "replace").rstrip("\n")
            rank.tail.append(text)
            with suppress(OSError):
                sys.stderr.write(f"{mark}{text}\n")
        log.close()

    def _poll(self) -> None:
        for rank in self._ranks:
            if rank.code is None:
                rank.code = rank.process.poll()
                if rank.code is not None:
                    rank.ended_seconds = time.monotonic()

    def _end_others(self) -> None:
        """Give the other ranks a moment to end by themselves, longer if this is an orderly stop, then kill them."""
        stopped = (None, 0, InterruptedWithProgress.exit_code, *_ASKED_TO_STOP)
        orderly = all(rank.code in stopped for rank in self._ranks)
        limit_seconds = time.monotonic() + (SAVING_GRACE_SECONDS if orderly else GRACE_SECONDS)
        while any(rank.code is None for rank in self._ranks) and time.monotonic() < limit_seconds:
            time.sleep(_POLL_SECONDS)
            self._poll()
        self._kill_all()

    def _kill_all(self) -> None:
        survivors = [rank for rank in self._ranks if rank.process.poll() is None]
        for rank in survivors:
            rank.process.kill()
        limit_seconds = time.monotonic() + LAST_LINES_SECONDS  # for all together
        for rank in self._ranks:
            rank.process.wait()
            if rank.reader is not None:
                rank.reader.join(timeout=max(0.0, limit_seconds - time.monotonic()))
            if rank.process.stdin is not None:
                rank.process.stdin.close()
            # A process that a rank started may still hold the other end; closing under its reader would wait for it.
            if rank.process.stdout is not None and (rank.reader is None or not rank.reader.is_alive()):
                rank.process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _raise_first_failure(self) -> None:
        failed = [rank for rank in self._ranks if rank.code]
        if not failed:
            return
        reports = {rank.rank: _report(rank) for rank in failed}
        # A rank that lost its peer fails as well, often first: whoever has another cause than that is the culprit.
        first = min(
            failed, key=lambda rank: (_rank_of_cause(rank, reports[rank.rank][0]), rank.ended_seconds, rank.rank)
        )
        code, sentence = reports[first.rank]
        if code not in (InterruptedWithProgress.exit_code, 0):
            _log.error("rank %d ended first; its last lines:\n%s", first.rank, "\n".join(first.tail))
        if code == InterruptedWithProgress.exit_code:
            raise InterruptedWithProgress(sentence)
        error = _ERROR_OF_CODE.get(code, StagecoachError)
        raise error(f"rank {first.rank} of {self._world.size}: {sentence}")


def _rank_of_cause(rank: _RankProcess, code: int) -> int:
    """Order causes: its own error or a kill from outside, then trouble with peers, then an orderly stop."""
    if rank.code is not None and rank.code < 0 and rank.code not in _ASKED_TO_STOP:
        return 0
    return {AcceleratorError.exit_code: 1, InterruptedWithProgress.exit_code: 2}.get(code, 0)


def _report(rank: _RankProcess) -> tuple[int, str]:
    """Return the exit code that a rank's failure stands for, and its sentence."""
    code = rank.code or 0
    if code in _ASKED_TO_STOP:  # it came before the rank could listen
        return InterruptedWithProgress.exit_code, "train: stopped before its first new step; run again to go on"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, or from outside)" if name == "SIGKILL" else ""
        return AcceleratorError.exit_code, f"was ended by {name}{hint}"
    try:
        values = json.loads(rank.failure_file.read_text(encoding="utf-8"))
        return int(values["exit_code"]), str(values["sentence"])
    except FileNotFoundError:
        if code == InterruptedWithProgress.exit_code:
            return code, "train: stopped before its first new step; run again to go on"
    except (OSError, ValueError, KeyError, TypeError) as error:  # a full disk: the sentence is the last line then
        _log.warning("rank %d left no report: %s: %r", rank.rank, rank.failure_file, error)
    last = next((line for line in reversed(rank.tail) if line.strip()), "no output")
    return (code, last) if code in _ERROR_OF_CODE else (70, f"ended with exit code {code}: {last}")
