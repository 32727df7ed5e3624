"""Packers that others use, each in a few plain lines, so that ours is measured beside them on the same lengths.

Lengths in, packs and cut documents counted; no document is longer than a pack. The peers count and forget, ours keeps
its plan: their seconds and memory are lower bounds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stagecoach_pack.packing import plan_packs

Lengths = npt.NDArray[np.int64]
MAP_BATCH = (
    1000  # documents that `datasets.Dataset.map` hands over at once unless told otherwise; TRL's trainer does not
)


class Packed(NamedTuple):
    """What a packer made of some documents."""

    packs: int
    cut_documents: int


def next_fit_decreasing(lengths: Lengths, capacity: int) -> Packed:
    """Pack as the seed does: longest first, one open pack, a separator before each further document."""
    packs, used = 0, capacity
    for length in np.sort(lengths)[::-1].tolist():
        if length >= capacity:
            packs += 1
        elif used + length + 1 <= capacity:
            used += length + 1
        else:
            packs, used = packs + 1, length
    return Packed(packs, 0)


def next_fit(lengths: Lengths, capacity: int) -> Packed:
    """Pack documents in order of arrival into one open pack."""
    packs, used = 0, capacity
    for length in lengths.tolist():
        if used + length > capacity:
            packs, used = packs + 1, 0
        used += length
    return Packed(packs, 0)


def first_fit_of_eight(lengths: Lengths, capacity: int) -> Packed:
    """Pack documents in order of arrival into eight open packs; the fullest is closed where none has room."""
    packs, free = 0, [0] * 8
    for length in lengths.tolist():
        place = next((index for index, space in enumerate(free) if space >= length), None)
        if place is None:
            place = free.index(min(free))
            packs, free[place] = packs + 1, capacity
        free[place] -= length
    return Packed(packs, 0)


def _batches(lengths: Lengths) -> Iterator[Lengths]:
    for start in range(0, len(lengths), MAP_BATCH):
        yield lengths[start : start + MAP_BATCH]


def trl_bfd(lengths: Lengths, capacity: int) -> Packed:
    """Pack as TRL's `packing_strategy="bfd"` (its default): best-fit decreasing inside each batch of `map`."""
    packs = 0
    for batch in _batches(lengths):
        free: list[int] = []
        for length in np.sort(batch)[::-1].tolist():
            place = bisect_left(free, length)
            if place == len(free):
                packs, space = packs + 1, capacity
            else:
                space = free.pop(place)
            if space > length:
                insort(free, space - length)
    return Packed(packs, 0)


def trl_wrapped(lengths: Lengths, capacity: int) -> Packed:
    """Pack as TRL's `packing_strategy="wrapped"`: each batch of `map` joined and cut every `capacity` tokens."""
    packs = cut = 0
    for batch in _batches(lengths):
        ends = np.cumsum(batch)
        packs += -(-int(ends[-1]) // capacity)
        cut += int(np.count_nonzero((ends - batch) // capacity != (ends - 1) // capacity))
    return Packed(packs, cut)


def best_fit(lengths: Lengths, capacity: int) -> Packed:
    """Pack as the pack stage does, with its default limit on documents."""
    return Packed(len(plan_packs(lengths, capacity, 1024, 0)[1]), 0)


SEED, TRL_BFD, TRL_WRAPPED = "seed: next-fit decreasing", "TRL: bfd", "TRL: wrapped"
OURS = "stagecoach: best-fit decreasing"
PACKERS: dict[str, Callable[[Lengths, int], Packed]] = {
    SEED: next_fit_decreasing,
    "next-fit, arrival": next_fit,
    "first-fit, 8 open": first_fit_of_eight,
    TRL_BFD: trl_bfd,
    TRL_WRAPPED: trl_wrapped,
    OURS: best_fit,
}
