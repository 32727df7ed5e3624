"""Best-fit-decreasing packing of whole documents: the longest first, each into the fullest pack that still has room.

    capacity 10, lengths 7 6 4 3 2 2 1

    7       [7 ...]           no pack yet: open one                     free 3
    6       [6 ....]          3 < 6: open one                           free 3 4
    4       [6 4]             the pack with 4 free fits best            free 3 0
    3       [7 3]                                                       free 0 0
    2 2 1   [2 2 1 .....]     nothing fits: open one                    free 0 0 5

Packs with the same free space wait on one stack; a two-level bit set finds the smallest sufficient space in two
steps. A million documents take one to two seconds. A pack that holds ``max_documents`` leaves its stack for good.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError

_WORD_BITS = 256


class _FreeSpaces:
    """The set of free spaces for which some pack is open; finds the smallest at or above a length."""

    def __init__(self, capacity: int) -> None:
        self._words = [0] * (capacity // _WORD_BITS + 1)
        self._summary = 0

    def add(self, space: int) -> None:
        word = space // _WORD_BITS
        self._words[word] |= 1 << (space % _WORD_BITS)
        self._summary |= 1 << word

    def remove(self, space: int) -> None:
        word = space // _WORD_BITS
        self._words[word] &= ~(1 << (space % _WORD_BITS))
        if not self._words[word]:
            self._summary &= ~(1 << word)

    def smallest_from(self, space: int) -> int:
        """Return the smallest member >= ``space``, or -1."""
        word = space // _WORD_BITS
        bits = self._words[word] >> (space % _WORD_BITS)
        if bits:
            return space + (bits & -bits).bit_length() - 1
        above = self._summary >> (word + 1)
        if not above:
            return -1
        word += (above & -above).bit_length()
        bits = self._words[word]
        return word * _WORD_BITS + (bits & -bits).bit_length() - 1


def best_fit_decreasing(
    lengths: npt.NDArray[np.integer[Any]], capacity: int, max_documents: int
) -> npt.NDArray[np.uint32]:
    """Return the pack of each document, uint32 [n]; packs are numbered from 0 in the order in which they were opened.

    Args:
        lengths: Tokens of each document, all from 1 to ``capacity``.
        capacity: Slots of a pack.
        max_documents: Most documents in a pack.

    Raises:
        DataError: A length is outside its range.
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise DataError(f"packing: expected lengths from 1 to {capacity}, got {lengths.min()} to {lengths.max()}")
    order = np.argsort(capacity - lengths.astype(np.int32), kind="stable")
    stacks: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = _FreeSpaces(capacity)
    counts: list[int] = []
    chosen = array("I")
    for length in chain.from_iterable(lengths[part].tolist() for part in np.array_split(order, len(order) >> 16 or 1)):
        space = spaces.smallest_from(length)
        if space < 0:
            space, pack = capacity, len(counts)
            counts.append(0)
        else:
            stack = stacks[space]
            pack = stack.pop()
            if not stack:
                spaces.remove(space)
        chosen.append(pack)
        counts[pack] += 1
        left = space - length
        if left and counts[pack] < max_documents:
            if not stacks[left]:
                spaces.add(left)
            stacks[left].append(pack)
    pack_of = np.empty(len(lengths), np.uint32)
    pack_of[order] = chosen
    return pack_of


def permutation(number: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """Return the numbers below ``number`` in an order drawn from a seed, int64.

    Sorts raw Philox words: numpy keeps those as they are, while its shuffles may change between versions.

    Args:
        number: How many.
        seed: Same seed and purpose, same order.
        purpose: Keeps the orders of one seed apart.
    """
    stream = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(number)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def plan_packs(
    lengths: npt.NDArray[np.integer[Any]], capacity: int, max_documents: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the order of the documents, pack after pack, and the number of documents of each pack.

    Packs, and the documents inside them, come in an order drawn from ``seed``; so do documents of equal length before
    they are packed, so that sources mix.

    Args:
        lengths: Tokens of each document.
        capacity: Slots of a pack.
        max_documents: Most documents in a pack.
        seed: Same seed, same plan.

    Returns:
        Permutation of the documents, int64 [n]; documents of each pack, int64 [packs].
    """
    shuffled = permutation(len(lengths), seed, "documents").astype(np.uint32)  # half the memory
    pack_of = best_fit_decreasing(lengths[shuffled], capacity, max_documents)
    num_packs = int(pack_of.max()) + 1 if len(pack_of) else 0
    place = permutation(num_packs, seed, "packs").astype(np.uint32)[pack_of]
    del pack_of
    order = np.lexsort((permutation(len(lengths), seed, "documents in packs").astype(np.uint32), place))
    return shuffled[order].astype(np.int64), np.bincount(place, minlength=num_packs)
