"""Grows the vocabulary by the ChatML tokens: new rows at the mean of the old ones, plus a little noise.

The mean keeps a new token's logit near the average one, so that it neither dominates nor hides; the noise
keeps the new rows apart from each other. Sums go row after row in float64, so that every machine gets the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError
from stagecoach.formats.tensor_file import Array
from stagecoach.random_bits import normal_rows

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Growth:
    """How the vocabulary changes."""

    old_rows: int
    """Rows of the base model's embedding."""
    new_rows: int
    """Rows of the native embedding; at least ``old_rows``."""
    new_tokens: Mapping[str, int]
    """Token -> row, of the rows that are new."""


def plan_growth(old_rows: int, ids: Mapping[str, int], origin: str) -> Growth:
    """Decide how many rows the embedding gets for the final tokenizer.

    Args:
        old_rows: Rows of the base model's embedding.
        ids: Every token of the final tokenizer with its id.
        origin: Says in messages which model it is.

    Raises:
        DataError: A token other than the two of ChatML has no row, or an id is left out between the new ones.
    """
    without_row = {token: at for token, at in sorted(ids.items(), key=lambda pair: pair[1]) if at >= old_rows}
    if others := [token for token in without_row if token not in CHATML_TOKENS]:
        raise DataError(
            f"{origin}: the tokenizer is larger than the model: {others[0]!r} has id"
            f" {ids[others[0]]}, but the embedding"
            f" has {old_rows} rows ({len(others)} such tokens); take the tokenizer that belongs to this model"
        )
    if list(without_row.values()) != list(range(old_rows, old_rows + len(without_row))):
        raise DataError(
            f"{origin}: expected new tokens to follow the embedding's {old_rows} rows without a gap, got {without_row}"
        )
    return Growth(old_rows, old_rows + len(without_row), without_row)


def new_rows(old: Array, count: int, *, noise: float, seed: int, name: str) -> Array:
    """Return rows for new tokens of an embedding or head.

    Args:
        old: The old rows, ``(rows, columns)`` of any float dtype.
        count: How many new ones.
        noise: Standard deviation of the noise as a share of the old rows' spread, the root mean square of
            their differences from their mean.
        seed: Seed of the noise.
        name: Native name of the tensor; each tensor has its own noise.

    Returns:
        fp32 of shape ``(count, columns)``.
    """
    mean = _sum_of_rows(old) / old.shape[0]
    spread = math.sqrt(math.fsum(_sum_of_rows(old, centre=mean, squared=True)) / old.size)
    rows = mean + (noise * spread) * normal_rows(seed, f"new rows/{name}", (count, old.shape[1]), 0, count)
    rounded: Array = rows.astype(np.float32)
    return rounded


def _sum_of_rows(
    rows: Array, *, centre: npt.NDArray[np.float64] | None = None, squared: bool = False
) -> npt.NDArray[np.float64]:
    total = np.zeros(rows.shape[1], np.float64)
    for row in _float64_rows(rows):
        value = row if centre is None else row - centre
        total += value * value if squared else value
    return total


def _float64_rows(rows: Array) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
        yield from rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
