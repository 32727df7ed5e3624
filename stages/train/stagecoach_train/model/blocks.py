"""One decoder block of the Llama family (Llama, Mistral, Qwen2, Qwen3), as in the paper.

    h = x + Attention(RMSNorm(x)) W_output
    y = h + (SiLU(g) * u) W_down        with  [g; u] = RMSNorm(h) W_gate_up

The products take whole weights or, under tensor parallelism, this rank's slice: shapes are read off the weights,
and the two places where ranks must talk are `exchange.enter` (before a product cut by rows) and `exchange.leave`
(after one cut by columns). Queries, keys and values are one product whose rows are grouped by key/value head: q ..
q, k, v, q .. q, k, v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from stagecoach_train.model.rope import rotate
from stagecoach_train.model.swiglu import swiglu

# S tokens of the residual stream on this rank (= T without sequence parallelism), T all tokens of the stream,
# E hidden size, I intermediate size, H query heads, G key/value heads, Q query heads a key/value head, D head_dim (I,
# H, G on this rank)


class Exchange(Protocol):
    """What ranks that share a layer's matrices tell each other; nothing, on one rank."""

    def enter(self, x_SE: torch.Tensor) -> torch.Tensor:
        """Make the input of a row-cut product whole: [S, E] -> [T, E]."""

    def leave(self, x_TE: torch.Tensor) -> torch.Tensor:
        """Add up the partial outputs of a column-cut product: [T, E] -> [S, E]."""


Product = Callable[..., torch.Tensor]
"""Multiplies as `F.linear` does: input, weight, optional bias."""


class Attend(Protocol):
    """Attention between rotated queries [T, H, D], keys and values [T, G, D]; returns [T, H, D]."""

    def __call__(self, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> torch.Tensor:
        """Attend."""


@dataclass(frozen=True, slots=True)
class BlockDims:
    """The numbers of a block that its weights' shapes do not tell."""

    head_dim: int
    queries_per_group: int
    norm_eps: float
    window: int | None


class BlockWeights(NamedTuple):
    """The weights of one block, [out, in]; optional ones are None in families without them."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide by the root mean square over the last dimension, in fp32 or better, then scale in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def decoder_block(
    x_SE: torch.Tensor,
    weights: BlockWeights,
    cos_T1F: torch.Tensor,
    sin_T1F: torch.Tensor,
    dims: BlockDims,
    attend: Attend,
    exchange: Exchange,
    product: Product = F.linear,
) -> torch.Tensor:
    """Return the block's output [S, E] in x's dtype."""
    h_TE = exchange.enter(rms_norm(x_SE, weights.attention_norm, dims.norm_eps))
    q_THD, k_TGD, v_TGD = split_heads(product(h_TE, weights.qkv, weights.qkv_bias), dims)
    if weights.q_norm is not None and weights.k_norm is not None:
        q_THD = rms_norm(q_THD, weights.q_norm, dims.norm_eps)
        k_TGD = rms_norm(k_TGD, weights.k_norm, dims.norm_eps)
    o_THD = attend(rotate(q_THD, cos_T1F, sin_T1F), rotate(k_TGD, cos_T1F, sin_T1F), v_TGD)
    x_SE = x_SE + exchange.leave(product(o_THD.flatten(1), weights.output))

    h_TE = exchange.enter(rms_norm(x_SE, weights.mlp_norm, dims.norm_eps))
    h_TI = swiglu(product(h_TE, weights.gate_up))
    return x_SE + exchange.leave(product(h_TI, weights.down))


def split_heads(qkv: torch.Tensor, dims: BlockDims) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split [T, G (Q + 2) D] into queries [T, H, D], keys and values [T, G, D]."""
    grouped = qkv.view(*qkv.shape[:-1], -1, dims.queries_per_group + 2, dims.head_dim)
    q, k, v = torch.split(grouped, [dims.queries_per_group, 1, 1], dim=-2)
    return q.flatten(1, 2), k.squeeze(-2), v.squeeze(-2)
