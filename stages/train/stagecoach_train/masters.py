"""Exact fp32 masters in 16 + 16 bits: the bf16 weight that the model multiplies with, and an int16 remainder beside it.

    fp32 bits     s eeeeeeee mmmmmmm | mmmmmmmmmmmmmmmm
    weight        the upper half, rounded to nearest with ties away from zero (add 0x8000, cut)
    remainder     bits - (weight's bits << 16), always in -32,768 .. 32,767

Ties to even would need a remainder of +32,768. Rounding to bf16 and dropping the remainder is what plain casting
does, so the model never sees anything but the rounded master.
"""

from __future__ import annotations

import torch


def split_(master: torch.Tensor, weight: torch.Tensor, remainder: torch.Tensor) -> None:
    """Write an fp32 master into a bf16 weight and an int16 remainder of the same shape.

    Examples:
        1 + 2^-8 lies halfway between two bf16 numbers and goes up; the remainder says by how much too far:

        >>> weight, remainder = torch.empty(1, dtype=torch.bfloat16), torch.empty(1, dtype=torch.int16)
        >>> split_(torch.tensor([1 + 2**-8]), weight, remainder)
        >>> weight.item(), remainder.item()
        (1.0078125, -32768)
    """
    bits = master.contiguous().view(torch.int32)
    rounded = (bits + 0x8000) & -0x10000
    remainder.copy_((bits - rounded).to(torch.int16))
    weight.copy_(rounded.view(torch.float32))


def join(weight: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """Return the fp32 master."""
    bits = weight.float().contiguous().view(torch.int32) + remainder.to(torch.int32)
    return bits.view(torch.float32)


def round_stochastically_(wide: torch.Tensor, bits: torch.Tensor, into: torch.Tensor) -> None:
    """Round fp32 to bf16, up with the probability of the distance, by adding 16 random bits (in [0, 2^16)) and cutting.

    A second moment with beta2 0.999 changes by less than a bf16 step an update; to nearest it would never move.
    """
    summed = wide.contiguous().view(torch.int32) + bits.to(torch.int32)
    into.copy_((summed & -0x10000).view(torch.float32))
