"""Counter-based random bits: the same number for the same element on every device, layout and resumed run.

Philox4x32-10 (Salmon et al. 2011) gives 128 bits a call, 16 of them to each of eight elements in a row: ten rounds an
element would take a GPU longer than moving its weight and moments. Key = the recipe's seed; counter = (block low, block
high, update, tensor), where a block is an eighth of the element's index in the whole native tensor, so that how the
tensor is cut does not matter.
"""

from __future__ import annotations

import zlib

import torch

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = 0xFFFFFFFF


def tensor_number(name: str) -> int:
    """Return the 32-bit number that stands for a tensor's native name in the counter."""
    return zlib.crc32(name.encode())


def random_bits(seed: int, update: int, tensor: int, elements: torch.Tensor) -> torch.Tensor:
    """Return 16 random bits an element as int64 in [0, 2^16).

    Args:
        seed: 64-bit key.
        update: Number of the update.
        tensor: See `tensor_number`.
        elements: int64 indices in the whole tensor; the lowest bit chooses the half, the next two the word of a call.

    Examples:
        The known answer for key 0 and counter 0 begins 6627e8d5 e169c58d:

        >>> [hex(bits) for bits in random_bits(0, 0, 0, torch.arange(4)).tolist()]
        ['0xe8d5', '0x6627', '0xc58d', '0xe169']
    """
    words = random_words(seed, update, tensor, elements >> 3)
    word = torch.stack(words).gather(0, (elements >> 1 & 3)[None])[0]
    return word >> ((elements & 1) * 16) & 0xFFFF


def random_words(seed: int, update: int, tensor: int, blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the generator's four 32-bit words for each block, as int64 in [0, 2^32)."""
    c0, c1 = blocks & _LOW_32, blocks >> 32 & _LOW_32
    c2, c3 = torch.full_like(c0, update & _LOW_32), torch.full_like(c0, tensor & _LOW_32)
    key_0, key_1 = seed & _LOW_32, seed >> 32 & _LOW_32
    for _ in range(10):
        low_0, high_0 = _multiply(c0, _MULTIPLIER_0)
        low_1, high_1 = _multiply(c2, _MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_0, low_1, high_0 ^ c3 ^ key_1, low_0
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW_32, (key_1 + _WEYL_1) & _LOW_32
    return c0, c1, c2, c3


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high half of a 64-bit product; int64 wraps around, but its bits are the right ones."""
    product = a * b
    return product & _LOW_32, product >> 32 & _LOW_32
