"""Which rows of its local tensors a rank holds and updates, without torch: what is read is decided before it is loaded.

How one local tensor of 10 rows is cut over 4 data-parallel ranks, with the native rectangles in it:

    rows       0 1 2 | 3 4 5 | 6 7 8 | 9        each updates its rows: FSDP2's cut, the last ones shorter or empty
    weights    resident: every rank holds all 10 rows; fsdp: its own
    moments    its own rows in both cases
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagecoach.architectures.registry import ModelSpec
from stagecoach.formats.checkpoint import Kind
from stagecoach.parallel.rectangles import Span
from stagecoach.parallel.slicing import Piece, RankLayout, local_rectangles
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import TrainConfig

if TYPE_CHECKING:
    import torch

_HELD: tuple[Kind, ...] = ("weight", "master_remainder")
_UPDATED: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle of a native tensor and where it lies in a local tensor; columns None for vectors."""

    rows: Span
    cols: Span | None
    local_rows: Span
    local_cols: Span | None

    def of(self, local: torch.Tensor) -> torch.Tensor:
        """Return the view of the local tensor."""
        view = local[self.local_rows[0] : self.local_rows[1]]
        return view if self.local_cols is None else view[:, self.local_cols[0] : self.local_cols[1]]


@dataclass(frozen=True, slots=True)
class Want:
    """A rectangle of a native tensor that a rank reads of a checkpoint."""

    name: str
    kind: Kind
    rows: Span
    cols: Span | None


def rectangles_in(pieces: Iterable[Piece], rows: Span) -> Iterator[Rectangle]:
    """Yield the native rectangles in these local rows; local rows count from the first of them."""
    for piece in pieces:
        start, stop = max(piece.local_rows[0], rows[0]), min(piece.local_rows[1], rows[1])
        if start < stop:
            shift = piece.rows[0] - piece.local_rows[0]
            yield Rectangle(
                rows=(start + shift, stop + shift),
                cols=piece.cols,
                local_rows=(start - rows[0], stop - rows[0]),
                local_cols=piece.local_cols,
            )


def shard_rows(num_rows: int, num_ranks: int, rank: int) -> Span:
    """Cut rows as FSDP2 does: equal shares, rounded up, the last ones shorter or empty.

    Examples:
        >>> [shard_rows(10, 4, rank) for rank in range(4)]
        [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    share = -(-num_rows // num_ranks)
    return min(rank * share, num_rows), min((rank + 1) * share, num_rows)


def topology_of(config: TrainConfig) -> Topology:
    """Return the grid of ranks that a recipe asks for."""
    layout = config.layout
    return Topology(layout.data_parallel, layout.tensor_parallel, layout.pipeline_parallel)


def rank_layout(config: TrainConfig) -> RankLayout:
    """Return how the model is cut, without the data-parallel axis."""
    layout = config.layout
    return RankLayout(layout.tensor_parallel, layout.pipeline_parallel, layout.virtual_stages)


def wants_of_rank(config: TrainConfig, spec: ModelSpec, rank: int) -> Iterator[Want]:
    """Yield everything that one rank reads when it resumes; when it starts, only the weights are there to be read."""
    at, layout = topology_of(config).coordinates(rank), config.layout
    is_sharded = layout.data_parallel_kind == "fsdp" and layout.data_parallel > 1
    for local in local_rectangles(spec, rank_layout(config), at.tp, at.pp):
        shard = shard_rows(local.local_shape[0], layout.data_parallel, at.dp)
        held = shard if is_sharded else (0, local.local_shape[0])
        for kinds, rows in ((_HELD, held), (_UPDATED, shard)):
            for rectangle in rectangles_in(local.pieces, rows):
                yield from (Want(local.name, kind, rectangle.rows, rectangle.cols) for kind in kinds)
