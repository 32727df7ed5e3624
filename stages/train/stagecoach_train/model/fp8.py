"""A block's four products in 8-bit floats with one scale a tensor: faster on Hopper, an approximation, off by default.

    y  = x W^T       x, W as e4m3: 3 bits of mantissa, up to 448
    dx = dy W        dy as e5m2: 2 bits of mantissa, up to 57,344, because gradients span more magnitudes
    dW = dy^T x

    8-bit value = value / scale, scale = amax / largest      product = sum of 8-bit products x both scales

Formats and their use as in Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433). Scales come from
the tensor at hand, not from earlier steps, so that a resumed run needs no state. Weights stay what they were: masters in
fp32, copies in bf16; embedding, norms, attention, head and loss do not change.
"""

from __future__ import annotations

from typing import Any

import torch

# T tokens, I inputs and O outputs of a product

INPUT_DTYPE = torch.float8_e4m3fn
GRADIENT_DTYPE = torch.float8_e5m2
LEAST_CAPABILITY = (8, 9)
"""First NVIDIA GPUs with 8-bit matrix products: Ada; Hopper is 9.0."""


def product(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Return x W^T (+ bias) [T, O] in x's dtype, all three products of forward and backward pass in 8 bits.

    Args:
        x_TI: bf16, sizes multiples of 16.
        weight_OI: bf16, sizes multiples of 16.
        bias_O: Added in bf16.
    """
    y_TO: torch.Tensor = _Product.apply(x_TI, weight_OI)  # type: ignore[no-untyped-call]
    return y_TO if bias_O is None else y_TO + bias_O


def scale_of(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the fp32 scalar that 8-bit values are multiplied with to give x back; NaN and infinity stay visible in it."""
    largest = torch.finfo(dtype).max
    return x.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny * largest) / largest


def narrowed(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x / scale, rounded to the nearest 8-bit value; what rounding lifts above the largest is the largest."""
    largest = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-largest, largest).to(dtype)


def _columns_first(x: torch.Tensor) -> torch.Tensor:
    """Return the same values so that `_scaled_mm`'s second factor, which must lie column after column, can be read."""
    return x.t().contiguous().t()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        x_scale, weight_scale = scale_of(x_TI, INPUT_DTYPE), scale_of(weight_OI, INPUT_DTYPE)
        narrow_TI = narrowed(x_TI, x_scale, INPUT_DTYPE)
        narrow_OI = narrowed(weight_OI, weight_scale, INPUT_DTYPE)
        # The weight's 8-bit copy is made again in the backward pass: keeping it would cost a byte a parameter.
        ctx.save_for_backward(narrow_TI, x_scale, weight_OI, weight_scale)
        return torch._scaled_mm(
            narrow_TI, narrow_OI.t(), scale_a=x_scale, scale_b=weight_scale, out_dtype=x_TI.dtype, use_fast_accum=True
        )

    @staticmethod
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        narrow_TI, x_scale, weight_OI, weight_scale = ctx.saved_tensors
        grad_scale = scale_of(grad_TO, GRADIENT_DTYPE)
        narrow_TO = narrowed(grad_TO, grad_scale, GRADIENT_DTYPE).contiguous()
        narrow_OI = narrowed(weight_OI, weight_scale, INPUT_DTYPE)
        # Without fast accumulation: gradients are added up in full fp32.
        dx_TI = torch._scaled_mm(
            narrow_TO, _columns_first(narrow_OI), scale_a=grad_scale, scale_b=weight_scale, out_dtype=grad_TO.dtype
        )
        dw_OI = torch._scaled_mm(
            narrow_TO.t().contiguous(),
            _columns_first(narrow_TI),
            scale_a=grad_scale,
            scale_b=x_scale,
            out_dtype=weight_OI.dtype,
        )
        return dx_TI, dw_OI
