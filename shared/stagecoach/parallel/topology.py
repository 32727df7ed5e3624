"""Which rank does which part of the work: rank <-> (data, pipeline, tensor) coordinates.

Tensor parallelism is the fastest coordinate, then data, then pipeline, so that the ranks that talk most sit
side by side.
With data 2, tensor 2, pipeline 2:

    rank        0  1  2  3  4  5  6  7
    tensor      0  1  0  1  0  1  0  1
    data        0  0  1  1  0  0  1  1
    pipeline    0  0  0  0  1  1  1  1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Axis = Literal["dp", "pp", "tp"]


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where one rank stands on the three axes, each from 0."""

    dp: int
    """Which copy of the model."""
    pp: int
    """Which run of layers."""
    tp: int
    """Which slice of every matrix."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A grid of data x tensor x pipeline ranks."""

    data_parallel: int = 1
    """Copies of the model."""
    tensor_parallel: int = 1
    """Ranks that share every matrix."""
    pipeline_parallel: int = 1
    """Ranks that hold consecutive layers."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("data_parallel", "tensor_parallel", "pipeline_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel

    def coordinates(self, rank: int) -> Coordinates:
        """Return where ``rank`` stands.

        Raises:
            ValueError: ``rank`` is not in ``[0, world_size)``.
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank: expected 0 to {self.world_size - 1}, got {rank}")
        rest, tp = divmod(rank, self.tensor_parallel)
        pp, dp = divmod(rest, self.data_parallel)
        return Coordinates(dp=dp, pp=pp, tp=tp)

    def rank(self, *, dp: int = 0, pp: int = 0, tp: int = 0) -> int:
        """Return the rank that stands there.

        Raises:
            ValueError: A coordinate is outside its axis.
        """
        sizes = (
            ("dp", dp, self.data_parallel),
            ("pp", pp, self.pipeline_parallel),
            ("tp", tp, self.tensor_parallel),
        )
        for name, value, size in sizes:
            if not 0 <= value < size:
                raise ValueError(f"{name}: expected 0 to {size - 1}, got {value}")
        return (pp * self.data_parallel + dp) * self.tensor_parallel + tp

    def groups(self, axis: Axis) -> list[list[int]]:
        """Return the groups of ranks that differ only on ``axis``, each in the order of that axis, by their
        first rank.

        Examples:
            >>> Topology(data_parallel=2, tensor_parallel=2).groups("dp")
            [[0, 2], [1, 3]]
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for rank in range(self.world_size):
            at = self.coordinates(rank)
            key = {"dp": (at.pp, at.tp), "pp": (at.dp, at.tp), "tp": (at.pp, at.dp)}[axis]
            groups.setdefault(key, []).append(rank)
        return sorted(groups.values())
