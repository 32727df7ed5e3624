"""Data parallelism with resident weights: whole weights on every rank, state cut by rows (ZeRO-2).

    backward of one weight  ->  its gradient, compute dtype
    hook                    ->  reduce-scatter: my rows summed over ranks, added to my fp32 rows; the gradient is freed
    optimizer               ->  updates my rows of weight, moments (and remainder)
    publish                 ->  all-gather of every rank's rows into everybody's weights

Gradients of every micro-batch are reduced at once, so that no rank ever holds a whole fp32 gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from stagecoach_train.parallel.parameters import LocalParameter


class Gradients(Protocol):
    """Where gradients gather during a step; one per way of data parallelism."""

    def begin(self) -> None:
        """Forget the last step's gradients."""

    def finish(self) -> list[torch.Tensor]:
        """Return the summed gradient of each parameter's shard, in fp32 or better, in the order of the parameters."""

    def publish(self) -> None:
        """After the update of the shards: give every rank the weights it computes with."""


class ResidentWeights:
    """Hooks that reduce each gradient as soon as it exists."""

    def __init__(self, parameters: Sequence[LocalParameter], group: dist.ProcessGroup | None) -> None:
        """Register the hooks; `group` None means one data-parallel rank."""
        self.parameters = parameters
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.sums: list[torch.Tensor | None] = [None] * len(parameters)
        for index, local in enumerate(parameters):
            hook = functools.partial(self._reduce, index)
            local.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Forget the last step's gradients."""
        self.sums = [None] * len(self.parameters)

    def finish(self) -> list[torch.Tensor]:
        """Return my rows' gradients; a parameter that no micro-batch touched has zeros."""
        return [
            self._zeros(local) if total is None else total[: local.shard[1] - local.shard[0]]
            for local, total in zip(self.parameters, self.sums, strict=True)
        ]

    def publish(self) -> None:
        """All-gather the updated rows."""
        if self.group is None:
            return
        for local in self.parameters:
            weight = local.parameter.data
            rows = local.weight_shard
            padded = self._padded_rows(rows, -(-local.num_rows // self.size))
            if local.num_rows % self.size == 0:
                dist.all_gather_into_tensor(weight, padded.clone(), group=self.group)
                continue
            gathered = weight.new_empty((padded.shape[0] * self.size, *weight.shape[1:]))
            dist.all_gather_into_tensor(gathered, padded, group=self.group)
            weight.copy_(gathered[: local.num_rows])

    @torch.no_grad()
    def _reduce(self, index: int, parameter: torch.Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        parameter.grad = None
        grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
        if self.group is not None:
            share = -(-self.parameters[index].num_rows // self.size)
            mine = grad.new_empty((share, *grad.shape[1:]))
            dist.reduce_scatter_tensor(mine, self._padded_rows(grad, share * self.size).contiguous(), group=self.group)
            grad = mine
        total = self.sums[index]
        self.sums[index] = grad if total is None else total.add_(grad)

    @staticmethod
    def _padded_rows(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Append zero rows, because the collectives want equal shares."""
        missing = num_rows - rows.shape[0]
        return rows if missing == 0 else torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])

    @staticmethod
    def _zeros(local: LocalParameter) -> torch.Tensor:
        shard = local.weight_shard
        return torch.zeros_like(shard, dtype=torch.promote_types(shard.dtype, torch.float32))
