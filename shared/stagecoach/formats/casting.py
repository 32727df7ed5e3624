"""Changes the dtype of large arrays in parts that fit the processor's cache, and finds NaN and infinity on
the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stagecoach.errors import DataError
from stagecoach.formats.tensor_file import BFLOAT16, DTYPES, Array

PART_BYTES = 4 * 1024 * 1024

_EXPONENT_BITS: dict[np.dtype[Any], tuple[Any, int, int]] = {
    DTYPES["F16"]: (np.uint16, 0x7FFF, 0x7C00),
    BFLOAT16: (np.uint16, 0x7FFF, 0x7F80),
    DTYPES["F32"]: (np.uint32, 0x7FFFFFFF, 0x7F800000),
}


def has_non_finite(array: Array) -> bool:
    """Say whether a contiguous fp16, bf16 or fp32 array holds a NaN or an infinity, without a copy of it."""
    unsigned, magnitude, infinity = _EXPONENT_BITS[array.dtype]
    flat = array.reshape(-1).view(unsigned)
    step = PART_BYTES // flat.itemsize
    scratch = np.empty(min(step, flat.size), unsigned)
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        bits = np.bitwise_and(part, unsigned(magnitude), out=scratch[: part.size])
        if bits.max(initial=0) >= infinity:
            return True
    return False


def row_parts(array: Array, dtype: np.dtype[Any]) -> Iterator[Array]:
    """Yield an array's rows in ``dtype``, in contiguous parts of about 4 MiB that follow each other.

    Rounding is to nearest, ties to even. Where nothing changes, the parts are views of a contiguous array.
    """
    row_bytes = max(1, array.nbytes // max(1, array.shape[0]))
    step = max(1, PART_BYTES // row_bytes)
    for start in range(0, array.shape[0], step):
        yield np.ascontiguousarray(array[start : start + step].astype(dtype, copy=False))


def checked_parts(
    name: str, array: Array, dtype: np.dtype[Any], *, advice: str, allow_non_finite: bool = False
) -> Iterator[Array]:
    """Yield ``row_parts``, and refuse a NaN or an infinity in them.

    Args:
        name: Of the tensor, for the error.
        array: Its rows.
        dtype: What they become.
        advice: What to do about an array that holds a NaN or an infinity.
        allow_non_finite: Yield them as they are.

    Raises:
        DataError: ``name`` holds one, or gets one because ``dtype`` is too narrow for its numbers.
    """
    at = 0
    with np.errstate(over="ignore"):
        for part in row_parts(array, dtype):
            if not allow_non_finite and has_non_finite(part):
                raise DataError(_sentence(name, array[at : at + part.shape[0]], part, at, advice))
            at += part.shape[0]
            yield part


def _sentence(name: str, before: Array, after: Array, first_row: int, advice: str) -> str:
    where = np.argwhere(~np.isfinite(after.astype(np.float32)))[0].tolist()
    value = float(before[tuple(where)])
    at = [where[0] + first_row, *where[1:]]
    if np.isfinite(value):
        return f"{name}: {value:g} at {at} does not fit {after.dtype}; choose a wider dtype"
    return f"{name}: expected finite numbers, got {value} at {at}; {advice}"
