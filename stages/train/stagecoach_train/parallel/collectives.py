"""Collectives that know their own gradient, along dimension 0, written so that compile can see and fuse them.

The pairs:

    forward            backward           used
    all-gather         reduce-scatter     into a row-cut product under sequence parallelism
    reduce-scatter     all-gather         out of a column-cut product under sequence parallelism
    all-gather         own slice          where every rank already has the whole gradient (the head's input)
    identity           all-reduce         into a row-cut product without sequence parallelism
    all-reduce         identity           out of a column-cut product without sequence parallelism
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# Functional collectives: plain operators in a traced graph, which is what asynchronous TP pattern-matches on.
_ops = torch.ops._c10d_functional


@dataclass(frozen=True, slots=True)
class Group:
    """A process group as compiled code needs it: by name, with constants instead of queries."""

    name: str
    size: int
    rank: int

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Group:
        """Describe a process group that this rank belongs to."""
        return cls(group.group_name, dist.get_world_size(group), dist.get_rank(group))


def all_gather(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Join every rank's rows, in rank order; no gradient of its own."""
    out: torch.Tensor = _ops.wait_tensor(_ops.all_gather_into_tensor(x.contiguous(), group.size, group.name))
    return out


def reduce_scatter(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Sum over ranks and keep this rank's equal share of rows; no gradient of its own."""
    out: torch.Tensor = _ops.wait_tensor(_ops.reduce_scatter_tensor(x.contiguous(), "sum", group.size, group.name))
    return out


def all_reduce(x: torch.Tensor, group: Group, operation: str = "sum") -> torch.Tensor:
    """Combine over ranks (sum or max) into a new tensor; no gradient of its own."""
    out: torch.Tensor = _ops.wait_tensor(_ops.all_reduce(x.contiguous(), operation, group.name))
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return reduce_scatter(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return all_gather(grad, ctx.group), None


class _GatherKnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        share = grad.shape[0] // ctx.group.size
        return grad.narrow(0, ctx.group.rank * share, share).contiguous(), None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return all_reduce(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def gather_rows(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-gather whose gradient is summed over ranks and scattered."""
    return _Gather.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]


def scatter_rows(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Reduce-scatter whose gradient is gathered."""
    return _Scatter.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]


def gather_rows_known_gradient(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-gather for consumers that give every rank the complete gradient."""
    return _GatherKnownGradient.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]


def copy_to_ranks(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Identity whose gradient is summed over ranks (Megatron's f)."""
    return _Copy.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]


def sum_over_ranks(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-reduce whose gradient is the identity (Megatron's g)."""
    return _Sum.apply(x, group)  # type: ignore[no-untyped-call, no-any-return]
