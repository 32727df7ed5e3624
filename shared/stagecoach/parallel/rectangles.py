"""Rectangles of a tensor: where two of them overlap, and whether a set of them covers the tensor exactly
once.
"""

from __future__ import annotations

from collections.abc import Iterable

from stagecoach.errors import DataError

Span = tuple[int, int]
"""First index and the one after the last."""

Rectangle = tuple[Span, Span | None]
"""Rows and columns; columns are None for one-dimensional tensors."""


def overlap(one: Rectangle, other: Rectangle) -> Rectangle | None:
    """Return what two rectangles of one tensor have in common, None if that is nothing."""
    rows = _common(one[0], other[0])
    if rows is None or one[1] is None or other[1] is None:
        return None if rows is None else (rows, None)
    cols = _common(one[1], other[1])
    return None if cols is None else (rows, cols)


def num_elements(rectangle: Rectangle) -> int:
    """Return rows times columns."""
    rows, cols = rectangle
    return (rows[1] - rows[0]) * (1 if cols is None else cols[1] - cols[0])


def is_inside(rectangle: Rectangle, shape: tuple[int, ...]) -> bool:
    """Say whether a rectangle, which may be empty, fits a tensor of one or two dimensions."""
    rows, cols = rectangle
    if not 0 <= rows[0] <= rows[1] <= shape[0] or (cols is None) != (len(shape) == 1):
        return False
    return cols is None or 0 <= cols[0] <= cols[1] <= shape[1]


def check_cover(what: str, shape: tuple[int, ...], rectangles: Iterable[Rectangle]) -> None:
    """Refuse rectangles that overlap, leave a hole or reach outside a tensor of ``shape``.

    Raises:
        DataError: Named with ``what`` and the first rectangle that is wrong.
    """
    whole: Rectangle = ((0, shape[0]), (0, shape[1]) if len(shape) == 2 else None)
    covered = 0
    reaching_below: list[Rectangle] = []
    for rectangle in sorted(rectangles, key=lambda rectangle: rectangle[0]):
        rows, cols = rectangle
        if not is_inside(rectangle, shape) or num_elements(rectangle) == 0:
            raise DataError(f"{what}: expected rectangles inside {shape}, got rows {rows} columns {cols}")
        # Sorted by first row, so only rectangles that reach below this one's can overlap it or a later one.
        reaching_below = [other for other in reaching_below if other[0][1] > rows[0]]
        if any(overlap(rectangle, other) for other in reaching_below):
            raise DataError(f"{what}: rows {rows} columns {cols} are stored twice")
        reaching_below.append(rectangle)
        covered += num_elements(rectangle)
    if covered != num_elements(whole):
        raise DataError(
            f"{what}: expected {num_elements(whole)} elements, its rectangles hold {covered}; a rank's file is missing"
        )


def _common(one: Span, other: Span) -> Span | None:
    start, end = max(one[0], other[0]), min(one[1], other[1])
    return (start, end) if start < end else None
