"""SwiGLU's own backward pass against autograd's, bit for bit on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stagecoach_train.model.swiglu import swiglu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = (torch.randn(7, 24, dtype=torch.float64) * 4).to(dtype).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    weight = torch.randn(7, 12, dtype=torch.float64).to(dtype)
    gate, up = plain.chunk(2, dim=-1)
    y, expected = swiglu(ours), F.silu(gate) * up
    torch.autograd.backward((y * weight).sum())
    torch.autograd.backward((expected * weight).sum())
    assert torch.equal(y, expected)
    assert ours.grad is not None
    assert plain.grad is not None
    assert torch.equal(ours.grad, plain.grad)


def test_the_gradient_of_a_view_is_right() -> None:
    whole = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: swiglu(x.t()[:8].t()), (whole,))
