"""fp32 masters kept as a bf16 weight and the 16 bits that it lacks, so that nothing is stored twice."""

from __future__ import annotations

import numpy as np

from stagecoach.formats.tensor_file import BFLOAT16, Array


def split_master(master: Array) -> tuple[Array, Array]:
    """Split fp32 into a bf16 weight, rounded to nearest with ties away from zero, and the int16 remainder of
    its bits.

    Examples:
        >>> weight, remainder = split_master(np.array([1.0, 1.00390625], np.float32))
        >>> weight.tolist(), remainder.tolist()
        ([1.0, 1.0078125], [0, -32768])
    """
    bits = np.ascontiguousarray(master, np.float32).view(np.uint32)
    high = (bits + np.uint32(0x8000)) >> np.uint32(16)
    remainder = (bits - (high << np.uint32(16))).view(np.int32).astype(np.int16)
    return high.astype(np.uint16).view(BFLOAT16), remainder


def join_master(weight: Array, remainder: Array) -> Array:
    """Return the fp32 master that ``split_master`` split, bit for bit."""
    high = np.ascontiguousarray(weight).view(np.uint16).astype(np.uint32) << np.uint32(16)
    return (high + remainder.astype(np.int32).view(np.uint32)).view(np.float32)
