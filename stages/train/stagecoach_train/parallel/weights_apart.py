"""Products whose weight gradient is made later than the rest of the backward pass, for zero-bubble pipelines.

    y = x W^T      backward pass:   dx = dy W        at once: the pipeline rank before waits for it
                                    dW = dy^T x      whenever this rank would be idle

Torch's own split (`torch.distributed.pipelining`, private) asks autograd for the weights' gradients of a cut graph; they
bypass the hooks by which gradients travel to their owners here, and a recomputed layer is computed twice. Cutting at the
product needs neither: accumulating dW runs the same hooks as an undivided backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Waiting = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Weight [out, in], the product's input [T, in], and the gradient of its output [T, out]."""


class WeightsApart:
    """Collects what the weights' gradients need, until somebody makes them."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._waiting: Waiting = []

    def product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return `F.linear(x, weight, bias)`; the backward pass leaves the weight's gradient here."""
        # In a tuple autograd does not see the weight: an edge without a gradient would run the weight's hooks all the same.
        return _Product.apply(x, bias, (weight,), self)  # type: ignore[no-untyped-call, no-any-return]

    def keep(self, weight: torch.Tensor, x: torch.Tensor, grad: torch.Tensor) -> None:
        """Remember one product."""
        self._waiting.append((weight, x, grad))

    def take(self) -> Waiting:
        """Return what waits since the last call, in the order of the backward pass."""
        waiting, self._waiting = self._waiting, []
        return waiting


def make_weight_gradients(waiting: Waiting) -> None:
    """Accumulate each weight's gradient, through autograd, so that the hooks on it run; `waiting` is emptied."""
    for weight, x, grad in waiting:
        torch.autograd.backward(weight, grad.flatten(0, -2).t() @ x.flatten(0, -2))
    waiting.clear()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight: tuple[torch.Tensor], apart: WeightsApart
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.apart, ctx.has_bias = weight[0], apart, bias is not None
        return F.linear(x, weight[0], bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.apart.keep(ctx.weight, x, grad)
        return grad @ ctx.weight, grad.flatten(0, -2).sum(0) if ctx.has_bias else None, None, None
