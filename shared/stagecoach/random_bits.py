"""Random numbers that are a function of (seed, tensor name, element), the same bits on every machine.

Philox is a counter-based generator: any element's bits are computed without the ones before it, so a tensor
can be made in parts and memory stays flat. Only integer arithmetic and exact or correctly rounded float64
operations follow, no logarithm or sine, whose last bit depends on the processor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_WORDS_PER_ELEMENT = 3
_WORDS_PER_BLOCK = 4  # Philox 4x64: four words for each step of its counter
_PART_BYTES = 16 * 1024 * 1024


def random_words(seed: int, name: str, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` random 64-bit words from word number ``start`` of the stream that belongs to (seed,
    name).

    Args:
        seed: Any whole number of at least 0.
        name: Names the stream: a tensor's name, with a purpose before it.
        start: Number of the first word.
        count: How many words.
    """
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    block, skipped = divmod(start, _WORDS_PER_BLOCK)
    generator = np.random.Philox(counter=block, key=key)
    return generator.random_raw(count + skipped)[skipped:]


def normal_rows(seed: int, name: str, shape: tuple[int, ...], start: int, end: int) -> npt.NDArray[np.float64]:
    """Return rows ``[start, end)`` of a tensor of nearly normal numbers with mean 0 and standard deviation 1.

    Each number is the sum of twelve uniform 16-bit numbers (the Irwin-Hall distribution), which is normal to
    the eye up to about three standard deviations, never exceeds six, and is exact in float64.

    Args:
        seed: Any whole number of at least 0.
        name: Name of the tensor.
        shape: Shape of the whole tensor; the numbers do not depend on how it is cut into rows.
        start: First row.
        end: Row after the last.
    """
    row_elements = math.prod(shape[1:])
    words = random_words(
        seed, name, start * row_elements * _WORDS_PER_ELEMENT, (end - start) * row_elements * _WORDS_PER_ELEMENT
    )
    sixteen = words.astype("<u8", copy=False).view("<u2").reshape(-1, 4 * _WORDS_PER_ELEMENT)
    total = sixteen.sum(axis=1, dtype=np.int64)
    centred = (2 * total - 4 * _WORDS_PER_ELEMENT * 0xFFFF).astype(np.float64)
    normal: npt.NDArray[np.float64] = (centred / float(2 * 0x10000)).reshape(end - start, *shape[1:])
    return normal


def normal_parts(seed: int, name: str, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the whole tensor of ``normal_rows`` in parts of whole rows that follow each other, about 16 MiB
    of bits each.
    """
    row_bytes = max(1, math.prod(shape[1:])) * _WORDS_PER_ELEMENT * 8
    step = max(1, _PART_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        yield normal_rows(seed, name, shape, start, min(start + step, shape[0]))
