"""Tensor parallelism, with or without sequence parallelism: what ranks exchange around products that they share.

    2 ranks, T = 4 tokens                     rank 0          rank 1
      residual stream, norms (SP)             tokens 0 1      tokens 2 3
      enter: all-gather                       0 1 2 3         0 1 2 3
      qkv, gate/up: half of the rows          0 1 2 3         0 1 2 3      each its own heads / channels
      output, down: half of the columns       partial sums    partial sums
      leave: reduce-scatter                   tokens 0 1      tokens 2 3

Without sequence parallelism every rank has all tokens: enter is the identity (gradient summed), leave an all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stagecoach_train.parallel import collectives
from stagecoach_train.parallel.collectives import Group


class OneRank:
    """No other rank: every exchange is the identity."""

    size = 1
    rank = 0

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Return x."""
        return x

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Return x."""
        return x

    def all_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Return x."""
        return x

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Return x."""
        return x

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Return x."""
        return x


@dataclass(frozen=True, slots=True)
class ReplicatedTokens:
    """Tensor parallelism in which every rank holds the residual stream of all tokens."""

    group: Group

    @property
    def size(self) -> int:
        """Ranks that share the matrices."""
        return self.group.size

    @property
    def rank(self) -> int:
        """This rank's slice."""
        return self.group.rank

    def enter(self, x_TE: torch.Tensor) -> torch.Tensor:
        """Identity; the gradient, of which each rank has a part, is summed."""
        return collectives.copy_to_ranks(x_TE, self.group)

    def leave(self, x_TE: torch.Tensor) -> torch.Tensor:
        """Sum the ranks' partial outputs."""
        return collectives.sum_over_ranks(x_TE, self.group)

    def all_tokens(self, x_TE: torch.Tensor) -> torch.Tensor:
        """Every token's row, for a consumer that gives each rank the complete gradient."""
        return x_TE

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, outside of autograd."""
        return collectives.all_reduce(x, self.group)

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, outside of autograd."""
        return collectives.all_reduce(x, self.group, "max")


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """Tensor parallelism with sequence parallelism: outside the products each rank holds its share of the tokens."""

    group: Group

    @property
    def size(self) -> int:
        """Ranks that share matrices and tokens."""
        return self.group.size

    @property
    def rank(self) -> int:
        """This rank's slice."""
        return self.group.rank

    def enter(self, x_SE: torch.Tensor) -> torch.Tensor:
        """Gather all tokens: [S, E] -> [T, E]."""
        return collectives.gather_rows(x_SE, self.group)

    def leave(self, x_TE: torch.Tensor) -> torch.Tensor:
        """Sum the partial outputs and keep this rank's tokens: [T, E] -> [S, E]."""
        return collectives.scatter_rows(x_TE, self.group)

    def all_tokens(self, x_SE: torch.Tensor) -> torch.Tensor:
        """Every token's row, for a consumer that gives each rank the complete gradient."""
        return collectives.gather_rows_known_gradient(x_SE, self.group)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, outside of autograd."""
        return collectives.all_reduce(x, self.group)

    def maximum(self, x: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, outside of autograd."""
        return collectives.all_reduce(x, self.group, "max")


TensorParallel = OneRank | ReplicatedTokens | SharedTokens


def tensor_parallel(group: Group | None, *, sequence_parallel: bool) -> TensorParallel:
    """Choose the exchange for a group of ranks; None or a group of one needs none."""
    if group is None or group.size == 1:
        return OneRank()
    return SharedTokens(group) if sequence_parallel else ReplicatedTokens(group)
