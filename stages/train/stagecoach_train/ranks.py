"""How the ranks of one training talk about control, beside the engine's own traffic: agreement, texts, per-rank sums.

Everything here runs on the CPU over gloo and the rendezvous store, so that no GPU is waited for and a background thread
may take part (through the store, never through collectives).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from stagecoach.errors import AcceleratorError
from stagecoach_train.parallel.gloo import register_gloo

_POLL_SECONDS = 0.02


class Ranks:
    """This rank's connection to its peers."""

    def __init__(self, rank: int, size: int, store: Any, timeout_seconds: float) -> None:
        """Join the peers; the default process group is initialised by now.

        Args:
            rank: This rank.
            size: Number of ranks.
            store: A ``torch.distributed.Store`` that all ranks share.
            timeout_seconds: Longest wait for a peer.
        """
        self.rank = rank
        self.size = size
        self._store = store
        self._timeout_seconds = timeout_seconds
        patience = timedelta(seconds=timeout_seconds)
        self._group = dist.new_group(backend=register_gloo(), timeout=patience) if size > 1 else None

    @property
    def leads(self) -> bool:
        """This is rank 0, which speaks for all."""
        return self.rank == 0

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return, for each place, the largest value that any rank gave; a collective."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return [float(value) for value in tensor]

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum over all ranks of arrays of one shape; a collective."""
        if self._group is None:
            return values
        tensor = torch.from_numpy(np.array(values, np.float64))
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self._group)
        return np.asarray(tensor.numpy())

    def say(self, key: str, text: str) -> None:
        """Leave a text for the other ranks; from any thread."""
        self._store.set(key, text)

    def hear(
        self, keys: Sequence[str], check: Callable[[], None] | None = None, timeout_seconds: float | None = None
    ) -> list[str]:
        """Wait for texts that other ranks leave and return them; from any thread.

        Args:
            keys: What to wait for.
            check: Called while waiting; raises to give up.
            timeout_seconds: Longest wait; None takes the ranks' own.

        Raises:
            AcceleratorError: A peer did not speak in time.
        """
        limit_seconds = time.monotonic() + (self._timeout_seconds if timeout_seconds is None else timeout_seconds)
        # Never a blocking wait on the store: its connection has one lock, which the other thread needs as well.
        while not self._store.check(list(keys)):
            if check is not None:
                check()
            if time.monotonic() > limit_seconds:
                raise AcceleratorError(f"rank {self.rank}: waited too long for {', '.join(keys[:3])} from its peers")
            time.sleep(_POLL_SECONDS)
        return [self._store.get(key).decode() for key in keys]
