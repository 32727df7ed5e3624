"""What one rank holds of each native tensor, and which part of that it alone updates, counts and writes.

Two cuts at once:

    layers.0.mlp.down.weight, 6 x 4, tensor 2, data 2 (rows cut 3 + 3)

             tp 0      tp 1
            c0 c1     c2 c3
      r0  +-------+ +-------+
      r1  | dp 0  | | dp 0  |     weights resident: each rank holds a whole column of boxes and updates one box;
      r2  +-------+ +-------+     fsdp: it holds one box only
      r3  | dp 1  | | dp 1  |
      r4  |       | |       |     what is replicated (norms over tp, a tied head over the pipeline's ends) is updated
      r5  +-------+ +-------+     by everybody alike and counted and written by one rank
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from stagecoach.architectures.registry import TensorSpec
from stagecoach.parallel.slicing import Piece
from stagecoach_train.parallel.shares import Rectangle, rectangles_in
from stagecoach_train.results import Range


@dataclass(frozen=True, slots=True)
class LocalParameter:
    """One parameter of this rank.

    Attributes:
        tensor: The native tensor that it is (a part of).
        parameter: What the model multiplies with; a DTensor under fsdp.
        pieces: The native rectangles in it; padding rows are in none.
        num_rows: Rows of the local tensor (this tensor-parallel rank's part), over all data-parallel ranks.
        shard: Rows of the local tensor that this data-parallel rank updates.
        held: Rows of the local tensor that this rank holds: all, or the shard under fsdp.
        is_counted: This rank, not another with the same values, counts it in norms and writes it to checkpoints.
        sum_over_tp: Each tensor-parallel rank has a part of its gradient.
        is_twin: A tied embedding on one end of the pipeline; the other end has the other part of the gradient.
        decays: Weight decay applies.
    """

    tensor: TensorSpec
    parameter: nn.Parameter
    pieces: tuple[Piece, ...]
    num_rows: int
    shard: Range
    held: Range
    is_counted: bool
    sum_over_tp: bool
    is_twin: bool
    decays: bool

    @property
    def name(self) -> str:
        """Native name."""
        return self.tensor.name

    @property
    def held_tensor(self) -> torch.Tensor:
        """The plain tensor that this rank holds."""
        data = self.parameter.data
        local: torch.Tensor = data.to_local() if hasattr(data, "to_local") else data
        return local

    @property
    def weight_shard(self) -> torch.Tensor:
        """View of the rows that this rank updates."""
        start, stop = (row - self.held[0] for row in self.shard)
        return self.held_tensor[start:stop]

    def rectangles(self, rows: Range) -> Iterator[Rectangle]:
        """Yield the native rectangles in these local rows; local rows count from the first of them."""
        return rectangles_in(self.pieces, rows)
