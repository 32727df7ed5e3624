"""Decides which conversations are trained on, how often, and which are held out: duplicates out, then hold out, then
mix.

Held out is decided by a hash of what is said alone (``Conversation.side``), so near copies go together, and under
``heldout_share`` a conversation stays on its side when data is added or reordered. ``heldout_num`` takes the smallest
hashes, so that new data may replace some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        copies: How often each is in the training packs, uint16 [n].
        held_out: Which are held out, bool [n]; their copies are 0.
        duplicate: Which equal an earlier one, bool [n]; their copies are 0.
    """

    copies: npt.NDArray[np.uint16]
    held_out: npt.NDArray[np.bool_]
    duplicate: npt.NDArray[np.bool_]


def takes_all(source: DataSource) -> bool:
    """Tell whether every distinct conversation of a source is packed or held out, whatever else is read."""
    return source.rows is None and source.weight >= 1


def select(
    sources: Sequence[DataSource],
    source_of: npt.NDArray[np.uint16],
    digests: npt.NDArray[np.uint8],
    sides: npt.NDArray[np.uint64],
    duplicate: npt.NDArray[np.bool_],
    pack: PackConfig,
) -> Selection:
    """Decide for every conversation.

    Args:
        sources: The recipe's sources, with their rows and weights.
        source_of: Source of each conversation, uint16 [n].
        digests: Hash of each conversation, uint8 [n, 16].
        sides: The number that decides whether it is held out, uint64 [n].
        duplicate: Leave these out, bool [n].
        pack: Says what is held out.

    Raises:
        DataError: A source has fewer conversations than its ``rows``, or nothing is left to train on.
    """
    held_out = _held_out(sides, duplicate, pack)
    copies = np.zeros(len(digests), np.uint16)
    for number, source in enumerate(sources):
        chosen: npt.NDArray[Any] = (source_of == number) & ~duplicate & ~held_out
        if source.rows is not None:
            chosen = sample_rows(np.flatnonzero(chosen), source.rows, source.rows_seed, source.name)
        copies[chosen] = _copies(digests, chosen, source.weight)
    if not copies.any():
        raise DataError(
            f"data: expected conversations to train on, got none of {len(digests)} ({int(held_out.sum())} are held"
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


def _copies(digests: npt.NDArray[np.uint8], chosen: npt.NDArray[Any], weight: float) -> int | npt.NDArray[np.uint16]:
    """Return how often each chosen conversation is taken: the whole part of the weight, and once more for a share by
    hash.
    """
    whole = int(weight)
    if whole == weight:
        return whole
    threshold = np.uint64(min(int((weight - whole) * 2.0**64), 2**64 - 1))
    low = np.ascontiguousarray(digests[chosen]).view(">u8")[:, 1]
    return whole + (low < threshold).astype(np.uint16)
