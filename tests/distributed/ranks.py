"""Runs a function in N rank processes with a gloo process group, and hands back what each returned."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stagecoach_train.parallel.gloo import BACKEND, register_gloo


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    timeout_seconds: float = 300,
    backend: str = BACKEND,
) -> list[Any]:
    """Call `function(*arguments)` on every rank and return the results in rank order.

    Args:
        world_size: Number of processes.
        function: A module-level function; its results travel through a queue, so numpy arrays and plain values.
        arguments: Given to every rank alike.
        folder: An empty folder for the rendezvous file.
        timeout_seconds: For all ranks together.
        backend: The product's gloo, torch's, or nccl with rank i on GPU i.

    Raises:
        RuntimeError: A rank failed (with its traceback), or nothing came in time.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    store = folder / "rendezvous"
    processes = [
        context.Process(
            target=_rank_main, args=(rank, world_size, str(store), results, function, arguments, backend), daemon=True
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_seconds
    try:
        while len(found) < world_size:
            try:
                rank, result, error = results.get(timeout=2)
            except queue.Empty:
                missing = sorted(set(range(world_size)) - set(found))
                if dead := [rank for rank in missing if processes[rank].exitcode is not None]:
                    raise RuntimeError(f"ranks {dead} of {world_size} ended without an answer") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"ranks {missing} of {world_size} did not answer in {timeout_seconds:.0f} s"
                    ) from None
                continue
            if error is not None:
                raise RuntimeError(f"rank {rank} of {world_size} failed:\n{error}{_other_errors(results)}")
            found[rank] = result
    finally:
        for process in processes:
            if len(found) == world_size:
                process.join(timeout=20)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(world_size)]


def _other_errors(results: Any) -> str:
    """What other ranks say within a moment: the first to report is often only the first to miss its peer."""
    texts = []
    try:
        while True:
            rank, _result, error = results.get(timeout=2)
            if error is not None:
                texts.append(f"\nrank {rank}:\n{error}")
    except queue.Empty:
        return "".join(texts)


def _rank_main(
    rank: int,
    world_size: int,
    store: str,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    backend: str,
) -> None:
    try:
        torch.set_num_threads(1)
        register_gloo()
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=dt.timedelta(seconds=120),
        )
        results.put((rank, function(*arguments), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
