"""Hands each rank its micro-batches, step after step, prepared one step ahead in a thread."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagecoach.architectures.registry import ModelSpec
from stagecoach.formats.packed import PackedSplit
from stagecoach.recipe.train import micro_batches_per_rank
from stagecoach_train.batch import MicroBatch, MicroBatchShape
from stagecoach_train.data import DataOrder, Packs, join_packs, share_step


@dataclass(frozen=True, slots=True)
class PackNumbers:
    """What is known of every pack of a split without reading its tokens.

    Attributes:
        costs: float64 [num_packs], work that differs between packs (attention, head), in operations; balancing looks
            at it.
        num_targets: int64 [num_packs], trained targets.
        num_tokens: int64 [num_packs], document tokens, padding left out.
        num_keys: int64 [num_packs], keys that all its queries attend to; what the attention part of MFU counts.
    """

    costs: npt.NDArray[np.float64]
    num_targets: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    num_keys: npt.NDArray[np.int64]

    @classmethod
    def of(cls, split: PackedSplit, spec: ModelSpec) -> PackNumbers:
        """Work them out from the stored records of a split."""
        num_targets = split.packs["num_targets"].astype(np.int64)
        num_tokens = split.packs["num_tokens"].astype(np.int64)
        keys_of_document = attended_keys(split.documents["num_tokens"].astype(np.int64), spec.sliding_window)
        first = split.packs["first_document"].astype(np.int64)
        num_keys = np.add.reduceat(keys_of_document, first) if len(first) else np.zeros(0, np.int64)
        # Padding is cut so short that it costs attention next to nothing.
        attention = 12.0 * spec.num_layers * spec.num_heads * spec.head_dim * num_keys
        head = 6.0 * spec.vocab_size * spec.hidden_size * num_targets
        return cls(attention + head, num_targets, num_tokens, num_keys)


def attended_keys(lengths: npt.NDArray[np.int64], sliding_window: int | None) -> npt.NDArray[np.int64]:
    """Return how many keys all queries of a document attend to, itself included, for documents of these lengths.

    Examples:
        A document of 5 tokens, whole and under a window of 2: 1 + 2 + 3 + 4 + 5, and 1 + 2 + 2 + 2 + 2.

        >>> lengths = np.array([5])
        >>> attended_keys(lengths, None).tolist(), attended_keys(lengths, 2).tolist()
        ([15], [9])
    """
    window = lengths if sliding_window is None else np.minimum(lengths, sliding_window)
    return window * (window + 1) // 2 + (lengths - window) * window


@dataclass(frozen=True, slots=True)
class StepData:
    """One rank's share of a step, and the whole step's numbers.

    Attributes:
        step: Which step, from 0.
        micro_batches: This rank's, None where one has no pack.
        packs: All packs of the step.
        num_targets: Trained targets of the whole step.
        num_tokens: Document tokens of the whole step.
        num_keys: Keys attended to in the whole step.
    """

    step: int
    micro_batches: list[MicroBatch | None]
    packs: list[int]
    num_targets: int
    num_tokens: int
    num_keys: int


class StepFeed:
    """Prepares the data of the next step while the current one runs."""

    def __init__(
        self,
        packs: Packs,
        numbers: PackNumbers,
        order: DataOrder,
        shape: MicroBatchShape,
        *,
        micro_batch_packs: int,
        data_parallel: int,
        dp_rank: int,
    ) -> None:
        """Feed the data-parallel rank ``dp_rank`` of ``data_parallel``."""
        self._packs = packs
        self._numbers = numbers
        self._order = order
        self._shape = shape
        self._micro_batch_packs = micro_batch_packs
        self._data_parallel = data_parallel
        self._dp_rank = dp_rank
        self._num_micro_batches = micro_batches_per_rank(order.packs_per_step, data_parallel, micro_batch_packs)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self._next: tuple[int, Future[StepData]] | None = None

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each rank in each step."""
        return self._num_micro_batches

    def get(self, step: int) -> tuple[StepData, float]:
        """Return the data of a step, and the seconds that were waited for it."""
        started_seconds = time.monotonic()
        if self._next is not None and self._next[0] == step:
            data = self._next[1].result()
        else:
            data = self.make(step)
        waited_seconds = time.monotonic() - started_seconds
        self._next = None
        if step + 1 < self._order.num_steps:
            self._next = (step + 1, self._pool.submit(self.make, step + 1))
        return data, waited_seconds

    def make(self, step: int) -> StepData:
        """Put together one step; a function of the step alone."""
        packs = self._order.packs_of_step(step)
        shared = share_step(
            packs, self._numbers.costs, self._data_parallel, self._micro_batch_packs, self._num_micro_batches
        )
        return StepData(
            step=step,
            micro_batches=[
                join_packs([self._packs.pack(pack) for pack in group], self._shape) if group else None
                for group in shared[self._dp_rank]
            ],
            packs=packs,
            num_targets=int(self._numbers.num_targets[packs].sum()),
            num_tokens=int(self._numbers.num_tokens[packs].sum()),
            num_keys=int(self._numbers.num_keys[packs].sum()),
        )

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
