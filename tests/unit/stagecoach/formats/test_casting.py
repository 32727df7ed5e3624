"""Casting in parts, and NaN and infinity named."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.formats import casting
from stagecoach.formats.tensor_file import BFLOAT16, DTYPES


def test_rounding_is_to_nearest_ties_to_even() -> None:
    # 1.00390625 lies between 1.0 (even) and 1.0078125; 1.01171875 between 1.0078125 and 1.015625 (even)
    (part,) = casting.row_parts(np.array([1.00390625, 1.01171875], np.float32), BFLOAT16)
    assert part.tolist() == [1.0, 1.015625]


def test_parts_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casting, "PART_BYTES", 16)
    array = np.arange(10, dtype=np.float32).reshape(5, 2)
    parts = list(casting.row_parts(array, DTYPES["F32"]))
    assert [part.shape[0] for part in parts] == [2, 2, 1]
    assert np.concatenate(parts).tolist() == array.tolist()
    assert not parts[0].flags.owndata


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_is_found_in_the_last_element(dtype: str, value: float) -> None:
    array = np.ones(1_200_000, DTYPES[dtype])
    assert not casting.has_non_finite(array)
    array[-1] = value
    assert casting.has_non_finite(array)


def test_the_largest_finite_numbers_are_fine() -> None:
    assert not casting.has_non_finite(np.array([65504, -65504], np.float16))
    assert not casting.has_non_finite(np.array([3.38953139e38, -1e-45], BFLOAT16))


def test_the_sentence_names_tensor_and_place() -> None:
    array = np.zeros((3, 2), np.float32)
    array[2, 1] = np.nan
    with pytest.raises(DataError, match=r"w: expected finite numbers, got nan at \[2, 1\]; go back$"):
        list(casting.checked_parts("w", array, DTYPES["F32"], advice="go back"))
    allowed = casting.checked_parts("w", array, BFLOAT16, advice="", allow_non_finite=True)
    assert np.isnan(np.concatenate(list(allowed))[2, 1])


def test_a_number_that_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match=r"w: 70000 at \[1\] does not fit float16"):
        list(casting.checked_parts("w", np.array([1, 70000], np.float32), DTYPES["F16"], advice=""))
