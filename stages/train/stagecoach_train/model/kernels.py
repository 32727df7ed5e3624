"""Document attention as one custom operator, so that compile sees a single node and recompute policies can name it.

The longest document comes as a CPU tensor: its value is data, not a constant of the compiled graph, so packs with other
documents never compile anything again. Outside a GPU the operator computes the same numbers in plain tensor arithmetic,
which is what lets the whole compiled path be tested without one.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
import torch.nn.attention.varlen  # registers torch_attn::_varlen_attn

# T tokens, H query heads, G key/value heads, D head_dim, N documents


@torch.library.custom_op("stagecoach::document_attention", mutates_args=())
def document_attention(
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: torch.Tensor,
    window: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [T, H, D] and log-sum-exp fp32 [H, T]; window 0 means none."""
    longest = int(max_seqlen)
    if not q_THD.is_cuda:
        return _reference_forward(q_THD, k_TGD, v_TGD, cu_seqlens, window)
    if backend == "fa4":
        return _flash4_forward(q_THD, k_TGD, v_TGD, cu_seqlens, longest, window)
    out, lse, *_ = torch.ops.torch_attn._varlen_attn(
        q_THD, k_TGD, v_TGD, cu_seqlens, cu_seqlens, longest, longest, window == 0, None, **_varlen_extras(window)
    )
    return out, lse


@document_attention.register_fake
def _(
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: torch.Tensor,
    window: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse_dtype = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    return out, q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=lse_dtype)


@torch.library.custom_op("stagecoach::document_attention_backward", mutates_args=())
def document_attention_backward(
    grad_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    out_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: torch.Tensor,
    window: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of queries, keys and values."""
    longest = int(max_seqlen)
    if not q_THD.is_cuda:
        return _reference_backward(grad_THD, q_THD, k_TGD, v_TGD, cu_seqlens, window)
    if backend == "fa4":
        return _flash4_backward(grad_THD, q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens, longest, window)
    unused_rng_state = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)
    dq, dk, dv = torch.ops.torch_attn._varlen_attn_backward(
        grad_THD, q_THD, k_TGD, v_TGD, out_THD, lse_HT, cu_seqlens, cu_seqlens, longest, longest, window == 0,
        unused_rng_state, None, **_varlen_extras(window),
    )  # fmt: skip
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@document_attention_backward.register_fake
def _(
    grad_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    out_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: torch.Tensor,
    window: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THD, k_TGD, v_TGD))
    return dq, dk, dv


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, cu_seqlens, max_seqlen, window, backend = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, max_seqlen)
    ctx.window, ctx.backend = window, backend


def _backward(ctx: Any, grad_THD: torch.Tensor, _grad_lse: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grads = document_attention_backward(grad_THD.contiguous(), *ctx.saved_tensors, ctx.window, ctx.backend)
    return (*grads, None, None, None, None)


document_attention.register_autograd(_backward, setup_context=_keep_for_backward)


def _varlen_extras(window: int) -> dict[str, Any]:
    """Ask the operator's schema: torch 2.11 takes the window as a list, 2.12 needs enable_gqa too, 2.10 has neither."""
    names = {argument.name for argument in torch.ops.torch_attn._varlen_attn.default._schema.arguments}
    extras: dict[str, Any] = {}
    if "window_size" in names:
        extras["window_size"] = [window - 1, 0] if window else [-1, 0]
    if "enable_gqa" in names:
        extras["enable_gqa"] = True
    return extras


def _flash4_window(window: int) -> dict[str, Any]:
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


def _flash4_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd  # a pre-release that only some images have

    lengths = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": longest, "max_seqlen_k": longest}
    out, lse, *_ = _flash_attn_fwd(
        q, k, v.contiguous(), softmax_scale=q.shape[-1] ** -0.5, causal=True, return_lse=True, **lengths,
        **_flash4_window(window),
    )  # fmt: skip
    return out, lse


def _flash4_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    cu_seqlens: torch.Tensor, longest: int, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    from flash_attn.cute.interface import _flash_attn_bwd

    lengths = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": longest, "max_seqlen_k": longest}
    dq, dk, dv, *_ = _flash_attn_bwd(
        q, k, v.contiguous(), out, grad, lse, softmax_scale=q.shape[-1] ** -0.5, causal=True, **lengths,
        **_flash4_window(window), deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def flash4_problem() -> str | None:
    """Say why flash-attn-4 cannot be used here, or None if it can."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0):
        return "it needs a Hopper GPU or newer (its backward pass refuses older ones)"
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
    except ImportError as error:
        return f"flash-attn-4 is not installed ({error})"
    wanted = {"cu_seqlens_q", "max_seqlen_q", "window_size_left", "causal"}
    for function, names in ((_flash_attn_fwd, wanted), (_flash_attn_bwd, wanted | {"deterministic"})):
        if missing := names - set(inspect.signature(function).parameters):
            return f"this flash-attn-4 is another version than the tested one: no {', '.join(sorted(missing))}"
    return None


def _documents_of(cu_seqlens: torch.Tensor) -> list[tuple[int, int]]:
    edges = cu_seqlens.tolist()
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _scores(q_HLD: torch.Tensor, k_HLD: torch.Tensor, window: int) -> torch.Tensor:
    """Masked, scaled scores [H, L, L] of one document."""
    length = q_HLD.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    hidden = (distance < 0) | (distance >= (window or length))
    scale: float = q_HLD.shape[-1] ** -0.5
    return (q_HLD @ k_HLD.mT * scale).masked_fill(hidden, -torch.inf)


def _reference_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[1] // k.shape[1]
    out_THD = torch.empty(q.shape, dtype=q.dtype)
    lse_HT = torch.empty(q.shape[1], q.shape[0], dtype=dtype)
    for start, stop in _documents_of(cu_seqlens):
        q_HLD, k_GLD, v_GLD = (x[start:stop].transpose(0, 1).to(dtype) for x in (q, k, v))
        k_HLD, v_HLD = (x.repeat_interleave(repeats, 0) for x in (k_GLD, v_GLD))
        scores_HLL = _scores(q_HLD, k_HLD, window)
        lse_HT[:, start:stop] = scores_HLL.logsumexp(-1)
        out_THD[start:stop] = (scores_HLL.softmax(-1) @ v_HLD).transpose(0, 1).to(q.dtype)
    return out_THD, lse_HT


def _reference_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    repeats = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    for start, stop in _documents_of(cu_seqlens):
        grad_HLD, q_HLD, k_GLD, v_GLD = (x[start:stop].transpose(0, 1).to(dtype) for x in (grad, q, k, v))
        k_HLD, v_HLD = (x.repeat_interleave(repeats, 0) for x in (k_GLD, v_GLD))
        p_HLL = _scores(q_HLD, k_HLD, window).softmax(-1)
        dp_HLL = grad_HLD @ v_HLD.mT
        ds_HLL = p_HLL * (dp_HLL - (dp_HLL * p_HLL).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        summed = [x.unflatten(0, (-1, repeats)).sum(1) for x in (ds_HLL.mT @ q_HLD, p_HLL.mT @ grad_HLD)]
        for target, value_HLD in zip((dq, dk, dv), (ds_HLL @ k_HLD, *summed), strict=True):
            target[start:stop] = value_HLD.transpose(0, 1).to(target.dtype)
    return dq, dk, dv
