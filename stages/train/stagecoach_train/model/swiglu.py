"""SiLU(gate) * up with a backward pass of its own: one pass over memory instead of the two that a compiled `cat` takes.

    y = SiLU(g) * u        dg = dy * u * SiLU'(g)        du = dy * SiLU(g)        with [g; u] one product's result

Autograd gives the two gradients apart and joins them; compiled, each half of the joined gradient reads all three inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# T tokens, I columns of the gate on this rank


def swiglu(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """Return SiLU(gate) * up [T, I] of [gate; up] [T, 2 I]."""
    y_TI: torch.Tensor = _Swiglu.apply(gate_up_T2I)  # type: ignore[no-untyped-call]
    return y_TI


@torch.library.custom_op("stagecoach::swiglu_backward", mutates_args=())
def swiglu_backward(grad_TI: torch.Tensor, gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `swiglu`'s input [T, 2 I], contiguous."""
    if grad_TI.is_cuda:
        from stagecoach_train.gpu_kernels import swiglu_gradient  # triton, which only GPU images have

        return swiglu_gradient(grad_TI.contiguous(), gate_up_T2I.contiguous())
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    grad_gate_TI = torch.ops.aten.silu_backward(grad_TI * up_TI, gate_TI)
    return torch.cat([grad_gate_TI, grad_TI * F.silu(gate_TI)], dim=-1)


@swiglu_backward.register_fake
def _(grad_TI: torch.Tensor, gate_up_T2I: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate_up_T2I, memory_format=torch.contiguous_format)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2I: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up_T2I)
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        return F.silu(gate_TI) * up_TI

    @staticmethod
    def backward(ctx: Any, grad_TI: torch.Tensor) -> torch.Tensor:
        (gate_up_T2I,) = ctx.saved_tensors
        grad_T2I: torch.Tensor = swiglu_backward(grad_TI, gate_up_T2I)
        return grad_T2I
