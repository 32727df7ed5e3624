"""Split masters come back bit for bit and round ties away from zero."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.formats.masters import join_master, split_master


def test_a_tie_goes_away_from_zero() -> None:
    # 1.00390625 is 0x3F808000, exactly between the bf16 numbers 0x3F80 (1.0) and 0x3F81 (1.0078125)
    weight, remainder = split_master(np.array([1.00390625, -1.00390625], np.float32))
    assert weight.tolist() == [1.0078125, -1.0078125]
    assert remainder.tolist() == [-32768, -32768]


def test_the_weight_is_the_nearest_bf16() -> None:
    values = np.array([1.0, 0.1, -3.14159, 1e-30, 3e38], np.float32)
    weight, _ = split_master(values)
    assert weight.tolist() == values.astype(ml_dtypes.bfloat16).tolist()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_every_bit_pattern_comes_back(bits: list[int]) -> None:
    master = np.array(bits, np.uint32).view(np.float32)
    weight, remainder = split_master(master)
    assert [weight.dtype.name, remainder.dtype.name] == ["bfloat16", "int16"]
    assert join_master(weight, remainder).view(np.uint32).tolist() == bits
