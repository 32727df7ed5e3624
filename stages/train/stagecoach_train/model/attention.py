"""Causal attention over a flat stream of documents that never see each other, by one of three kernels.

What is computed, and by what:

    stream   | doc 0      | doc 1   | pad |      query i of a document sees keys max(0, i - W + 1) .. i of it:
    tokens     0 1 2 3 4    0 1 2     0          a window of W keys counts the query itself; no window sees 0 .. i

    backend   where            how
    sdpa      CPU, reference   torch's scaled_dot_product_attention, document after document
    varlen    GPU              torch's varlen attention (FlashAttention-2)
    fa4       Hopper GPU       flash-attn-4, where it is installed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from stagecoach_train.model import kernels

# T tokens, H query heads, G key/value heads (H a multiple of G), D head_dim, N documents, L tokens of one document

Backend = Literal["sdpa", "varlen", "fa4"]


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the documents of a stream lie.

    Attributes:
        cu_seqlens: int32 [N + 1] on the model's device, padded with T.
        max_seqlen: int32 scalar tensor on the CPU, so that another value does not compile anything again.
        spans: The same starts and stops as Python numbers, empty documents left out; for the sdpa backend.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: torch.Tensor
    spans: tuple[tuple[int, int], ...]


def attend(
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    documents: Documents,
    window: int | None,
    backend: Backend,
) -> torch.Tensor:
    """Return the attention's output [T, H, D]; key/value heads are shared by H/G query heads without being copied."""
    if backend == "sdpa":
        return _attend_each_document(q_THD, k_TGD, v_TGD, documents, window)
    out_THD: torch.Tensor = kernels.document_attention(
        q_THD, k_TGD, v_TGD, documents.cu_seqlens, documents.max_seqlen, window or 0, backend
    )[0]
    return out_THD


def _attend_each_document(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, documents: Documents, window: int | None
) -> torch.Tensor:
    """Loop over documents: a mask over the whole stream costs its square, this the documents' squares."""
    # One split, not a slice a document: the backward pass of a split joins once, that of slices adds up whole streams.
    lengths = [stop - start for start, stop in documents.spans]
    parts = [torch.split(x.transpose(0, 1).unsqueeze(0), lengths, dim=2) for x in (q_THD, k_TGD, v_TGD)]
    outs = [
        F.scaled_dot_product_attention(
            q_1HLD,
            k_1GLD,
            v_1GLD,
            attn_mask=band_mask(length, window, q_THD.device) if window is not None and length > window else None,
            is_causal=window is None or length <= window,
            enable_gqa=q_THD.shape[1] != k_TGD.shape[1],
        )
        for length, q_1HLD, k_1GLD, v_1GLD in zip(lengths, *parts, strict=True)
    ]
    return torch.cat(outs, dim=2)[0].transpose(0, 1)


def band_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return bool [length, length], True where query (row) may see key (column).

    Examples:
        >>> band_mask(4, 2, torch.device("cpu")).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)
