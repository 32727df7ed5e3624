"""Random numbers that depend on seed, name and element alone: literal values, parts, and the shape of the
bell.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach import random_bits
from stagecoach.random_bits import normal_parts, normal_rows, random_words

WORDS = ["0x59709a377956a792", "0x9c97e540501cda88", "0xe174e6e1ea37df6f"]
NUMBERS = [[2.3243865966796875, -1.269744873046875], [0.6131134033203125, 0.8524932861328125]]


def test_literal_words() -> None:
    """Pinned: another value would change every seed model and every new vocabulary row."""
    assert [hex(word) for word in random_words(1, "embedding.weight", 0, 3)] == WORDS


def test_literal_numbers() -> None:
    assert normal_rows(1, "embedding.weight", (2, 2), 0, 2).tolist() == NUMBERS


def test_seed_and_name_both_count() -> None:
    streams = {tuple(random_words(seed, name, 0, 4)) for seed in (0, 1) for name in ("a", "b")}
    assert len(streams) == 4


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_stream_can_be_entered_anywhere(start: int, count: int) -> None:
    whole = random_words(5, "x", 0, 80)
    assert random_words(5, "x", start, count).tolist() == whole[start : start + count].tolist()


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_bits, "_PART_BYTES", 500)
    parts = list(normal_parts(3, "x", (10, 7)))
    assert len(parts) > 3
    assert np.array_equal(np.concatenate(parts), normal_rows(3, "x", (10, 7), 0, 10))


def test_the_bell() -> None:
    numbers = normal_rows(0, "bell", (200_000,), 0, 200_000)
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01
    # A normal distribution has 68.3 % within one and 99.7 % within three standard deviations.
    assert abs((np.abs(numbers) < 1).mean() - 0.683) < 0.01
    assert abs((np.abs(numbers) < 3).mean() - 0.9973) < 0.002
    assert np.abs(numbers).max() <= 6
