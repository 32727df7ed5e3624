"""Rectangles that cover a tensor exactly once, and those that do not."""

from __future__ import annotations

import pytest

from stagecoach.errors import DataError
from stagecoach.parallel.rectangles import Rectangle, check_cover, overlap

QUARTERS: list[Rectangle] = [((a, a + 2), (b, b + 3)) for a in (0, 2) for b in (0, 3)]


def test_overlap() -> None:
    assert overlap(((0, 4), (0, 6)), ((2, 9), (5, 7))) == ((2, 4), (5, 6))
    assert overlap(((0, 4), (0, 6)), ((4, 9), (0, 6))) is None
    assert overlap(((0, 4), None), ((3, 9), None)) == ((3, 4), None)


def test_quarters_cover() -> None:
    check_cover("t", (4, 6), QUARTERS)
    check_cover("t", (4,), [((2, 4), None), ((0, 2), None)])


@pytest.mark.parametrize(
    ("rectangles", "message"),
    [
        (QUARTERS[:3], "expected 24 elements, its rectangles hold 18"),
        ([*QUARTERS, ((1, 2), (2, 4))], "rows \\(1, 2\\) columns \\(2, 4\\) are stored twice"),
        ([((0, 4), (0, 7))], "inside \\(4, 6\\)"),
        ([((0, 4), None)], "inside \\(4, 6\\)"),
        ([*QUARTERS, ((0, 0), (0, 6))], "inside \\(4, 6\\)"),
        # Same area as the whole, but doubled on the left and absent on the right.
        ([((0, 4), (0, 3)), ((0, 2), (0, 3)), ((2, 4), (0, 3))], "stored twice"),
    ],
)
def test_what_does_not_cover_is_refused(rectangles: list[Rectangle], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_cover("t", (4, 6), rectangles)
