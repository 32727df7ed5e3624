"""What one rank does: meet the others, agree on the attempt, train, and report how it ended.

    python -m stagecoach_train.worker --job FILE --failure FILE

``launcher.py`` starts it so; under another launcher the stage's own process calls ``train_rank``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from stagecoach.contract import exit_code_of
from stagecoach.errors import AcceleratorError, InterruptedWithProgress, StagecoachError
from stagecoach.redaction import log_to_stderr
from stagecoach.settings import Settings, set_default_variable
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_train.inputs import check_files, ranks_here
from stagecoach_train.job import Assignment, Job
from stagecoach_train.parallel.gloo import register_gloo
from stagecoach_train.ranks import Ranks
from stagecoach_train.signals import StopRequest, deadline_unix_seconds

RENDEZVOUS_SECONDS = 1800
_COMMUNICATION_ERRORS = ("DistNetworkError", "DistStoreError", "DistBackendError")
_COMMUNICATION_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "socket", "timed out")

_log = logging.getLogger("stagecoach.train")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this rank stands among all ranks.

    Attributes:
        rank: From 0.
        size: Number of ranks.
        local_rank: On this machine; also the number of its GPU.
        address: Host name of rank 0's machine.
        port: Its rendezvous port.
        listen_descriptor: The listening socket that rank 0 inherited, if it did.
        elastic: Another launcher (torchrun) holds the rendezvous store.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    listen_descriptor: int | None = None
    elastic: bool = False

    @classmethod
    def of(cls, settings: Settings, listen_descriptor: int | None = None, *, elastic: bool = False) -> Place:
        """Read the usual variables."""
        return cls(
            settings.rank or 0,
            settings.world_size or 1,
            settings.local_rank or 0,
            settings.main_address or "127.0.0.1",
            settings.main_port or 0,
            listen_descriptor,
            elastic,
        )

    @property
    def leader(self) -> int:
        """The first rank of this machine."""
        return self.rank - self.local_rank


def connect(place: Place, *, gpu: bool, timeout_seconds: float) -> Ranks:
    """Meet the other ranks; initialises the default process group unless there is a single rank.

    Raises:
        AcceleratorError: They did not come.
    """
    if place.size == 1:
        return Ranks(0, 1, HashStore(), timeout_seconds)
    patience = timedelta(seconds=RENDEZVOUS_SECONDS)
    gloo = register_gloo()
    try:
        if place.elastic:
            store, _, _ = next(iter(rendezvous("env://", timeout=patience)))
        else:
            store = TCPStore(
                place.address,
                place.port,
                place.size,
                is_master=place.rank == 0,
                timeout=patience,
                wait_for_workers=False,
                master_listen_fd=place.listen_descriptor,
            )
        dist.init_process_group(
            f"cpu:{gloo},cuda:nccl" if gpu else gloo,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=torch.device("cuda", place.local_rank) if gpu else None,
        )
    except RuntimeError as error:
        raise AcceleratorError(f"rank {place.rank} did not find its {place.size - 1} peers: {error}") from error
    return Ranks(place.rank, place.size, PrefixStore("control", store), timeout_seconds)


def train_rank(job: Job, place: Place, stop: StopRequest, store: ObjectStore) -> None:
    """Do one rank's part of the training.

    Args:
        job: What to train.
        place: Which rank this is.
        stop: Asked at every safe point.
        store: Where everything is kept.
    """
    from stagecoach_train.assemble import assemble  # the engine's modules are heavy; a waiting rank needs none of them

    config = job.config
    stop.expendable = True
    torch.set_num_threads(config.threads_per_rank)
    if config.deterministic:  # the workspaces of cuBLAS's deterministic kernels; torch and cuBLAS look once
        set_default_variable("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = _device(job, place)
    ranks = connect(place, gpu=device.type == "cuda", timeout_seconds=config.communication_timeout_seconds)
    try:
        job = _agree_on_job(job, place, ranks, store)
        if job.assignment is not None and job.assignment.attempt:
            assemble(job, store, ranks, device, stop).run()
        ranks.largest([0.0])  # rank 0 holds the store of texts: it leaves last
    except InterruptedWithProgress:
        ranks.largest([0.0])  # all ranks agreed to stop, so all come here
        raise
    finally:
        stop.expendable = False
    if place.size > 1:
        dist.destroy_process_group()


def _agree_on_job(job: Job, place: Place, ranks: Ranks, store: ObjectStore) -> Job:
    """Fill in what another rank or another process of this machine knows: the attempt, and the checked files."""
    assignment = job.assignment
    if assignment is None:
        assignment = Assignment.from_json(ranks.hear(["assignment"], timeout_seconds=RENDEZVOUS_SECONDS)[0])
    elif ranks.leads:
        ranks.say("assignment", assignment.to_json())
    if not assignment.attempt:
        return job.with_assignment(assignment, None)
    job = job.with_assignment(assignment, job.files)
    key = f"files/{place.leader}"
    files = job.files
    if place.local_rank == 0:
        files = check_files(job, store, ranks_here(Settings.from_environ(), job.config)) if files is None else files
        ranks.say(key, json.dumps(files))
    elif files is None:
        files = json.loads(ranks.hear([key], timeout_seconds=RENDEZVOUS_SECONDS)[0])
    return job.with_assignment(assignment, files)


def _device(job: Job, place: Place) -> torch.device:
    if not job.config.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available() or torch.cuda.device_count() <= place.local_rank:
        raise AcceleratorError(
            f"train.gpus is {job.config.gpus}: expected a GPU for local rank {place.local_rank}, this machine shows"
            f" {torch.cuda.device_count()}; use another node, or set train.gpus to 0 to train on CPU"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def classify(error: BaseException) -> tuple[int, str]:
    """Return a rank's exit code and sentence; lost peers are an accelerator fault, not a bug."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, StagecoachError) or not isinstance(error, RuntimeError):
        return exit_code_of(error)
    if type(error).__name__ in _COMMUNICATION_ERRORS or any(word in text.lower() for word in _COMMUNICATION_WORDS):
        return AcceleratorError.exit_code, f"communication between ranks failed: {text}"
    return exit_code_of(error)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of our standard input is closed then."""

    def watch() -> None:
        while sys.stdin.buffer.read(1):
            pass
        _log.error("the process that started this rank is gone; ending")
        os._exit(AcceleratorError.exit_code)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: Iterable[str] | None = None) -> int:
    """Run one rank; the exit code is the stage's."""
    parser = argparse.ArgumentParser(prog="python -m stagecoach_train.worker")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--failure", type=Path, required=True)
    parser.add_argument("--listen-descriptor", type=int)
    flags = parser.parse_args(None if arguments is None else list(arguments))
    settings = Settings.from_environ()
    place = Place.of(settings, flags.listen_descriptor)
    if arguments is None:
        faulthandler.enable()  # a crash in native code leaves every thread's Python stack in the log
    log_to_stderr(
        logging.INFO if place.rank == 0 else logging.WARNING, "%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    _end_with_parent()
    try:
        job = Job.read(flags.job)
        stop = StopRequest(
            deadline=deadline_unix_seconds(settings.deadline_iso8601),
            budget_seconds=job.config.wall_clock_budget_seconds,
        )
        with stop.listening(ends_process=True):
            train_rank(job, place, stop, open_store(job.store_url, settings))
    except BaseException as error:
        code, sentence = classify(error)
        _leave_report(flags.failure, code, sentence)
        return code
    return 0


def _leave_report(file: Path, code: int, sentence: str) -> None:
    """Tell the launcher how this rank failed; where the disk has no room for that, in the last line of the log."""
    try:
        file.write_text(json.dumps({"exit_code": code, "sentence": sentence}), encoding="utf-8")
    except OSError:
        sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a failure the accelerator's libraries may wait in their destructors for peers that are gone.
    os._exit(exit_code)
