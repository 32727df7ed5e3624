"""The rank grid: tensor fastest, then data, then pipeline."""

from __future__ import annotations

import pytest

from stagecoach.parallel.topology import Coordinates, Topology

GRID = Topology(data_parallel=2, tensor_parallel=2, pipeline_parallel=2)


def test_the_drawing_in_the_module() -> None:
    at = [GRID.coordinates(rank) for rank in range(8)]
    assert [c.tp for c in at] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [c.dp for c in at] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [c.pp for c in at] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_rank_and_coordinates_are_inverse() -> None:
    odd = Topology(data_parallel=3, tensor_parallel=2, pipeline_parallel=5)
    for rank in range(30):
        at = odd.coordinates(rank)
        assert odd.rank(dp=at.dp, pp=at.pp, tp=at.tp) == rank


def test_groups() -> None:
    assert GRID.groups("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert GRID.groups("dp") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert GRID.groups("pp") == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_what_lies_outside_is_refused() -> None:
    assert Topology().coordinates(0) == Coordinates(dp=0, pp=0, tp=0)
    with pytest.raises(ValueError, match="expected 0 to 7, got 8"):
        GRID.coordinates(8)
    with pytest.raises(ValueError, match="tp: expected 0 to 1, got 2"):
        GRID.rank(tp=2)
    with pytest.raises(ValueError, match="data_parallel: expected at least 1, got 0"):
        Topology(data_parallel=0)
