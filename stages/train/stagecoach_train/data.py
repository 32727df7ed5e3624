"""Which packs make which step, and how a step is shared: the step number is the whole state of the data.

    epoch 0          epoch 1          epoch 2 (the last, cut by `epochs: 2.6`)
    3 0 4 1 2        1 4 0 2 3        4 0 2                    a permutation of 5 packs for each epoch, joined
    |-- step 0 --|-- step 1 --|-- step 2 --|-- 3 --|           cut every 4 packs; step 3 has one empty place

The packs of a step are dealt to the data-parallel ranks by cost (longest first to the least loaded), so that no rank
waits long for another. Which packs make a step never depends on the layout; only who works on which does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError
from stagecoach.formats.packed import PackArrays
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.batch import MicroBatch, MicroBatchShape

_LOOK_AHEAD_PACKS = 1_000_000
_ORDER_STREAM = 0x5041434B  # "PACK": keeps these random bits apart from every other use of the same seed


class Packs(Protocol):
    """The packs of one split, as ``stagecoach.formats.packed.PackedSplit`` offers them."""

    @property
    def num_packs(self) -> int:
        """How many there are."""

    def pack(self, index: int) -> PackArrays:
        """Return one of them."""


@dataclass(frozen=True, slots=True)
class DataOrder:
    """Which packs make which step.

    Attributes:
        num_packs: Packs of the training split.
        packs_per_step: Places of a step.
        total_packs: Packs seen in the whole training, repetitions counted.
        num_steps: Steps of the whole training.
        seed: What the permutations are made from.
    """

    num_packs: int
    packs_per_step: int
    total_packs: int
    num_steps: int
    seed: int

    @classmethod
    def of(cls, config: TrainConfig, num_packs: int) -> DataOrder:
        """Return the order that a recipe asks for.

        Raises:
            DataError: There is nothing to train on.
        """
        if num_packs < 1:
            raise DataError("train: expected at least one training pack, got 0; add data or lower the held-out share")
        total_packs, num_steps = config.total_packs(num_packs), config.total_steps(num_packs)
        return cls(num_packs, config.packs_per_step, total_packs, num_steps, config.seed)

    def packs_of_step(self, step: int) -> list[int]:
        """Return the packs of a step, counted from 0; fewer than ``packs_per_step`` only in the last one."""
        start = step * self.packs_per_step
        stop = min(start + self.packs_per_step, self.total_packs)
        return [self._pack_at(position) for position in range(start, stop)]

    def epoch_of_step(self, step: int) -> float:
        """Return how many epochs have been seen when ``step`` steps are done."""
        return min(step * self.packs_per_step, self.total_packs) / self.num_packs

    def _pack_at(self, position: int) -> int:
        epoch, index = divmod(position, self.num_packs)
        return int(permutation(self.seed, epoch, self.num_packs)[index])


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_packs: int) -> npt.NDArray[np.int64]:
    """Return the order of the packs in one epoch, int64 [num_packs].

    Sorts raw Philox words instead of asking numpy's Generator, whose algorithms may change between versions.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, _ORDER_STREAM])
    order = np.argsort(bits.random_raw(num_packs), kind="stable")
    order.flags.writeable = False
    return order


def deal(costs: Sequence[float], num_bins: int, places: int) -> list[list[int]]:
    """Deal items to bins so that the fullest costs little: dearest first, to the cheapest bin that has a place.

    Ties go to the earlier item and the lower bin, so the answer is a function of the costs alone.

    Args:
        costs: Cost of each item.
        num_bins: Number of bins.
        places: Most items a bin can hold.

    Returns:
        For each bin the indices of its items, dearest first.

    Examples:
        >>> deal([5, 9, 4, 7], num_bins=2, places=2)
        [[1, 2], [3, 0]]
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0.0] * num_bins
    for item in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        open_bins = [index for index in range(num_bins) if len(bins[index]) < places]
        cheapest = min(open_bins, key=lambda index: (loads[index], index))
        bins[cheapest].append(item)
        loads[cheapest] += costs[item]
    return bins


def share_step(
    packs: Sequence[int],
    costs: npt.NDArray[np.float64],
    data_parallel: int,
    micro_batch_packs: int,
    num_micro_batches: int,
) -> list[list[list[int]]]:
    """Share a step's packs: for each data-parallel rank its micro-batches, each a list of packs, maybe empty.

    Micro-batches stand dearest first on every rank, so that ranks which meet at each of them wait little.

    Args:
        packs: The step's packs.
        costs: [num_packs], cost of every pack of the split, in any unit.
        data_parallel: Ranks to share among.
        micro_batch_packs: Most packs in a micro-batch.
        num_micro_batches: Micro-batches of each rank.
    """
    places = num_micro_batches * micro_batch_packs
    shared = []
    for rank_items in deal([float(costs[pack]) for pack in packs], data_parallel, places):
        rank_packs = [packs[item] for item in rank_items]
        groups = deal([float(costs[pack]) for pack in rank_packs], num_micro_batches, micro_batch_packs)
        groups.sort(key=lambda group: (-sum(float(costs[rank_packs[item]]) for item in group), group))
        shared.append([[rank_packs[item] for item in group] for group in groups])
    return shared


def join_packs(packs: Sequence[PackArrays], shape: MicroBatchShape) -> MicroBatch:
    """Join the documents of packs to one flat stream, in their order; free slots of packs and places without one become
    untrained padding documents behind them.

    Raises:
        ValueError: The packs need more tokens or documents than the shape has.
    """
    used = [pack.num_document_tokens for pack in packs]
    offsets = np.cumsum([0, *used])
    nothing = np.zeros(0, np.int64)
    starts = np.concatenate([nothing, *(pack.document_starts + at for pack, at in zip(packs, offsets, strict=False))])
    num_tokens = int(offsets[-1])
    unused = shape.num_tokens - num_tokens
    num_documents = len(starts) + (unused > 0)
    if unused < 0 or num_documents > shape.num_documents:
        raise ValueError(
            f"{len(packs)} packs with {num_tokens} tokens and {len(starts)} documents: expected at most"
            f" {shape.num_tokens} tokens and {shape.num_documents} documents in a micro-batch"
        )
    return MicroBatch.of_documents(
        np.concatenate([nothing, *(pack.tokens[:n] for pack, n in zip(packs, used, strict=True))]),
        np.concatenate([nothing != 0, *(pack.trained[:n] for pack, n in zip(packs, used, strict=True))]),
        starts,
        shape,
    )


def refuse_untrained_steps(order: DataOrder, targets_of_pack: npt.NDArray[np.int64]) -> None:
    """Refuse, before the first step, a training with a step that has nothing to learn from.

    Looks a million packs ahead; ``steps`` may be given for ever, with a budget of wall time. What lies further ahead is
    refused by the engine when it comes.

    Args:
        order: Which packs make which step.
        targets_of_pack: [num_packs], trained targets of each pack.

    Raises:
        DataError: One of these steps has no trained target; its loss would be 0 / 0.
    """
    if int(targets_of_pack.min(initial=1)) > 0:
        return
    for step in range(min(order.num_steps, _LOOK_AHEAD_PACKS // order.packs_per_step + 1)):
        packs = order.packs_of_step(step)
        if int(targets_of_pack[packs].sum()) == 0:
            named = ", ".join(map(str, packs[:8])) + (", .." if len(packs) > 8 else "")
            raise DataError(
                f"train: step {step + 1} of {order.num_steps} (packs {named}) has no trained"
                f" target; raise train.packs_per_step above {order.packs_per_step}, or remove conversations without an"
                " answer"
            )
