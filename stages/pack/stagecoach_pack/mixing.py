"""Decides which conversations are trained on, how often, and which are held out: duplicates out, then hold out, then
mix.

Held out is decided by a hash of what is said alone (``Conversation.side``), so near copies go together, and under
``heldout_share`` a conversation stays on its side when data is added or reordered. ``heldout_num`` takes the smallest
hashes, so that new data may replace some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataSource
from stagecoach.recipe.pack import PackConfig

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of every conversation.

    Attributes:
        copies: How often each is in the training packs, int64 [n].
        held_out: Which are held out, bool [n]; their copies are 0.
        duplicate: Which equal an earlier one, bool [n]; their copies are 0.
    """

    copies: Indices
    held_out: npt.NDArray[np.bool_]
    duplicate: npt.NDArray[np.bool_]


def select(
    sources: Sequence[DataSource],
    source_of: npt.NDArray[np.uint16],
    digests: npt.NDArray[np.uint8],
    sides: npt.NDArray[np.uint64],
    pack: PackConfig,
    *,
    remove_duplicates: bool,
) -> Selection:
    """Decide for every conversation.

    Args:
        sources: The recipe's sources, with their rows and weights.
        source_of: Source of each conversation, uint16 [n].
        digests: Hash of each conversation, uint8 [n, 16].
        sides: The number that decides whether it is held out, uint64 [n].
        pack: Says what is held out.
        remove_duplicates: Keep only the first of equal conversations.

    Raises:
        DataError: A source has fewer conversations than its ``rows``, or nothing is left to train on.
    """
    high, low = _halves(digests)
    duplicate = _later_equals(high, low) if remove_duplicates else np.zeros(len(high), np.bool_)
    held_out = _held_out(sides, duplicate, pack)
    copies = np.zeros(len(high), np.int64)
    for number, source in enumerate(sources):
        members = np.flatnonzero((source_of == number) & ~duplicate & ~held_out)
        if source.rows is not None:
            members = sample_rows(members, source.rows, source.rows_seed, source.name)
        copies[members] = _copies(low[members], source.weight)
    if not copies.any():
        raise DataError(
            f"data: expected conversations to train on, got none of {len(high)} ({int(held_out.sum())} are held"
            " out); lower pack.heldout_share"
        )
    return Selection(copies, held_out, duplicate)


def sample_rows(members: Indices, rows: int, seed: int, name: str) -> Indices:
    """Return the ``rows`` members that ``pandas.DataFrame.sample(n=rows, random_state=seed)`` would draw, ascending.

    Raises:
        DataError: There are fewer.
    """
    if rows > len(members):
        raise DataError(
            f"data source {name}: rows: expected at most the {len(members)} conversations that are there, got"
            f" {rows}; lower it or leave it out"
        )
    drawn = np.random.RandomState(seed).choice(len(members), size=rows, replace=False)
    return np.sort(members[drawn])


def _halves(digests: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    pairs = np.ascontiguousarray(digests).view(">u8")
    return pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)


def _later_equals(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Mark every conversation that equals one before it."""
    order = np.lexsort((np.arange(len(high)), low, high))
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    later = np.zeros(len(high), np.bool_)
    later[order[1:][same]] = True
    return later


def _held_out(
    sides: npt.NDArray[np.uint64], duplicate: npt.NDArray[np.bool_], pack: PackConfig
) -> npt.NDArray[np.bool_]:
    """Hold out the conversations whose number is smallest, by share or by number; equal ones go together."""
    if pack.heldout_num is None:
        return (sides < np.uint64(min(int(pack.heldout_share * 2.0**64), 2**64 - 1))) & ~duplicate
    candidates = np.flatnonzero(~duplicate)
    if pack.heldout_num >= len(candidates):
        raise DataError(
            f"pack.heldout_num: expected fewer than the {len(candidates)} distinct conversations, got"
            f" {pack.heldout_num}; lower it"
        )
    if pack.heldout_num == 0:
        return np.zeros(len(sides), np.bool_)
    last = np.partition(sides[candidates], pack.heldout_num - 1)[pack.heldout_num - 1]
    return np.asarray((sides <= last) & ~duplicate, np.bool_)


def _copies(low: npt.NDArray[np.uint64], weight: float) -> Indices:
    """Return how often each conversation is taken: the whole part of the weight, and once more for a share by hash."""
    whole = int(weight)
    threshold = np.uint64(min(int((weight - whole) * 2.0**64), 2**64 - 1))
    return whole + (low < threshold).astype(np.int64)
