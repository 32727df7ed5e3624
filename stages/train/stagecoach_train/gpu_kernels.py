"""Triton kernels, each one pass over memory: AdamW, cross entropy in place, SwiGLU's gradient, sums of gradients.

Imported only where tensors are on a GPU. Every kernel has a plain counterpart (`optimizer.plain_adamw`, `loss`,
`model.swiglu`, a sum) that it is tested against.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from stagecoach_train.updates import Slice, UpdateNumbers

BLOCK = 4_096
COLUMN_BLOCK = 16_384
SWIGLU_BLOCK = 1_024

# Bounds and strides of memory are left to specialise: not knowing that a bound is a multiple of 16, Triton would load
# element by element, at a third of the bandwidth.


@triton.jit(do_not_specialize=["first_row", "first_column", "update", "tensor_number", "key_0", "key_1"])  # type: ignore[untyped-decorator]
def _adamw(  # type: ignore[no-untyped-def]
    weight, remainder, grad, exp_avg, exp_avg_sq, factor_pointer,
    count, width, first_row, first_column, native_columns,
    decay, rest1, beta2, rest2, eps, step_size, root_correction,
    key_0, key_1, update, tensor_number,
    SPLIT: tl.constexpr, ROUND: tl.constexpr, WHOLE_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    factor = tl.load(factor_pointer).to(tl.float32)
    if (factor - factor) != 0.0:  # not finite: the step is skipped, nothing is stored
        return
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < count
    g = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32) * factor
    m = tl.load(exp_avg + offset, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq + offset, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
    if SPLIT:
        low = tl.load(remainder + offset, mask=mask, other=0).to(tl.int32)
        w = (w.to(tl.int32, bitcast=True) + low).to(tl.float32, bitcast=True)
    m = m + (g - m) * rest1
    v = v * beta2 + g * g * rest2
    w = w - w * decay - step_size * m / (tl.sqrt(v) / root_correction + eps)
    tl.store(exp_avg + offset, m.to(exp_avg.dtype.element_ty), mask=mask)
    if ROUND:
        # Philox blocks of eight elements (see philox.py): one call a block where rows begin and end with one.
        step: tl.constexpr = 8 if WHOLE_BLOCKS else 1
        small = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK // step) * step
        row = (small // width + first_row).to(tl.int64)
        element = row * native_columns + (small % width + first_column)
        block = element >> 3
        zero = block.to(tl.uint32) * 0
        word_0, word_1, word_2, word_3 = tl.philox_impl(
            block.to(tl.uint32), (block >> 32).to(tl.uint32), zero + update.to(tl.uint32),
            zero + tensor_number.to(tl.uint32), zero + key_0.to(tl.uint32), zero + key_1.to(tl.uint32),
        )  # fmt: skip
        if WHOLE_BLOCKS:
            words = tl.interleave(tl.interleave(word_0, word_2), tl.interleave(word_1, word_3))
            bits = tl.interleave(words & 0xFFFF, words >> 16)
        else:
            place = (element & 7).to(tl.uint32)
            low_words = tl.where(place < 2, word_0, word_1)
            word = tl.where(place < 4, low_words, tl.where(place < 6, word_2, word_3))
            bits = (word >> (place & 1) * 16) & 0xFFFF
        v_bits = v.to(tl.int32, bitcast=True) + bits.to(tl.int32)
        v = ((v_bits >> 16) << 16).to(tl.float32, bitcast=True)
    tl.store(exp_avg_sq + offset, v.to(exp_avg_sq.dtype.element_ty), mask=mask)
    if SPLIT:
        w_bits = w.to(tl.int32, bitcast=True)
        rounded = ((w_bits + 0x8000) >> 16) << 16
        tl.store(remainder + offset, (w_bits - rounded).to(tl.int16), mask=mask)
        # Exact: the lower half is zero.
        tl.store(weight + offset, rounded.to(tl.float32, bitcast=True).to(tl.bfloat16), mask=mask)
    else:
        tl.store(weight + offset, w.to(weight.dtype.element_ty), mask=mask)


def adamw_pass(part: Slice, factor: torch.Tensor, numbers: UpdateNumbers) -> None:
    """Update one slice; see `optimizer.plain_adamw`."""
    count = part.weight.numel()
    if count == 0:
        return
    columns = part.rectangle.cols
    whole_blocks = columns is not None and all(number % 8 == 0 for number in (*columns, part.native_columns))
    _adamw[(triton.cdiv(count, BLOCK),)](
        part.weight, part.weight if part.remainder is None else part.remainder, part.grad, part.exp_avg,
        part.exp_avg_sq, factor,
        count, 1 if columns is None else columns[1] - columns[0], part.rectangle.rows[0],
        0 if columns is None else columns[0], part.native_columns,
        part.decay, 1 - numbers.beta1, numbers.beta2, 1 - numbers.beta2, numbers.eps, numbers.step_size,
        numbers.root_correction,
        numbers.seed & 0xFFFFFFFF, numbers.seed >> 32 & 0xFFFFFFFF, numbers.update, part.tensor_number,
        SPLIT=part.remainder is not None, ROUND=part.exp_avg_sq.dtype == torch.bfloat16, WHOLE_BLOCKS=whole_blocks,
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_token"])  # type: ignore[untyped-decorator]
def _row_statistics(  # type: ignore[no-untyped-def]
    logits, targets, out, first_token, num_real, stride, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row) - first_token
    highest = tl.full((), -float("inf"), tl.float32)
    sum_exp = tl.full((), 0.0, tl.float32)
    target_logit = tl.full((), 0.0, tl.float32)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        mask = column < num_real
        x = tl.load(logits + row * stride + column, mask=mask, other=-float("inf")).to(tl.float32)
        # A block of padding alone has no maximum of its own.
        new_highest = tl.maximum(tl.maximum(highest, tl.max(x)), -1e30)
        sum_exp = sum_exp * tl.exp(highest - new_highest) + tl.sum(tl.exp(x - new_highest))
        target_logit += tl.sum(tl.where((column == target) & mask, x, 0.0))
        highest = new_highest
    tl.store(out + row * 3, highest)
    tl.store(out + row * 3 + 1, sum_exp)
    tl.store(out + row * 3 + 2, target_logit)


@triton.jit(do_not_specialize=["first_token"])  # type: ignore[untyped-decorator]
def _row_gradient(  # type: ignore[no-untyped-def]
    logits, targets, log_sum_exp, scale, first_token, num_real, stride, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target_token = tl.load(targets + row)
    target = target_token - first_token
    lse = tl.load(log_sum_exp + row)
    factor = tl.where(target_token >= 0, scale, 0.0)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        real = column < num_real
        x = tl.load(logits + row * stride + column, mask=real, other=-float("inf")).to(tl.float32)
        gradient = (tl.exp(x - lse) - tl.where(real & (column == target), 1.0, 0.0)) * factor
        tl.store(logits + row * stride + column, gradient.to(logits.dtype.element_ty), mask=column < stride)


def row_statistics(logits_CV: torch.Tensor, targets_C: torch.Tensor, first_token: int, num_real: int) -> torch.Tensor:
    """Return [C, 3] fp32: highest logit, sum of exp(logit - highest), the target's logit (0 if elsewhere)."""
    out = torch.empty(logits_CV.shape[0], 3, dtype=torch.float32, device=logits_CV.device)
    if logits_CV.shape[0]:
        _row_statistics[(logits_CV.shape[0],)](
            logits_CV, targets_C, out, first_token, num_real, logits_CV.stride(0),
            BLOCKS=triton.cdiv(logits_CV.shape[1], COLUMN_BLOCK), BLOCK=COLUMN_BLOCK, num_warps=16,
        )  # fmt: skip
    return out


def logits_to_gradient_(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, lse_C: torch.Tensor, scale: float, first_token: int, num_real: int
) -> None:
    """Overwrite contiguous logits by the gradient of scale x loss; rows with a negative target and padding become 0."""
    if logits_CV.shape[0]:
        _row_gradient[(logits_CV.shape[0],)](
            logits_CV, targets_C, lse_C, scale, first_token, num_real, logits_CV.stride(0),
            BLOCKS=triton.cdiv(logits_CV.shape[1], COLUMN_BLOCK), BLOCK=COLUMN_BLOCK, num_warps=16,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_gradient(  # type: ignore[no-untyped-def]
    grad, gate_up, out, inner, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < inner
    dy = tl.load(grad + row * inner + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + row * 2 * inner + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + column, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    dtype = out.dtype.element_ty
    tl.store(out + row * 2 * inner + column, (dy * up * (sigmoid + silu * (1.0 - sigmoid))).to(dtype), mask=mask)
    tl.store(out + row * 2 * inner + inner + column, (dy * silu).to(dtype), mask=mask)


def swiglu_gradient(grad_TI: torch.Tensor, gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """Return the gradient [T, 2 I] of SiLU(gate) * up by [gate; up], computed in fp32; both arguments contiguous."""
    out = torch.empty_like(gate_up_T2I)
    num_rows, inner = grad_TI.shape
    if num_rows:
        _swiglu_gradient[(num_rows, triton.cdiv(inner, SWIGLU_BLOCK))](
            grad_TI, gate_up_T2I, out, inner, BLOCK=SWIGLU_BLOCK, num_warps=4
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _add_parts(  # type: ignore[no-untyped-def]
    total, own, peers, count, peer_stride, PEERS: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < count
    value = tl.load(own + offset, mask=mask, other=0.0).to(tl.float32)
    for peer in tl.static_range(PEERS):
        value += tl.load(peers + peer * peer_stride + offset, mask=mask, other=0.0).to(tl.float32)
    if not FIRST:
        value += tl.load(total + offset, mask=mask)
    tl.store(total + offset, value, mask=mask)


def add_parts(total: torch.Tensor, own: torch.Tensor, peers: torch.Tensor, peer_stride: int, *, first: bool) -> None:
    """Total (+)= own + the peers' parts, in fp32.

    Args:
        total: fp32, contiguous; overwritten if `first`, else added to.
        own: This rank's own part, any float dtype, contiguous.
        peers: The other ranks' parts one after the other, `peer_stride` elements apart; may be empty.
        peer_stride: Distance between two parts.
        first: Whether this is the step's first micro-batch.
    """
    count = total.numel()
    if count:
        num_peers: Any = peers.numel() // peer_stride if peer_stride else 0
        _add_parts[(triton.cdiv(count, BLOCK),)](
            total, own, peers, count, peer_stride, PEERS=num_peers, FIRST=first, BLOCK=BLOCK, num_warps=8
        )
