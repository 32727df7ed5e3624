"""Attention within documents: masks by hand, and every way of computing it against the plainest one."""

from __future__ import annotations

import itertools

import pytest
import torch

from stagecoach_train.model.attention import Backend, Documents, attend, band_mask

EDGES = [0, 5, 6, 14, 14, 14]


def documents() -> Documents:
    """Lengths 5, 1 and 8, padded to five documents."""
    spans = tuple((a, b) for a, b in itertools.pairwise(EDGES) if b > a)
    return Documents(torch.tensor(EDGES, dtype=torch.int32), torch.tensor(128, dtype=torch.int32), spans)


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Six query heads over two key/value heads."""
    torch.manual_seed(1)
    return [torch.randn(14, heads, 4, dtype=dtype, requires_grad=True) for heads in (6, 2, 2)]


def plainest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """One mask over the whole stream, key/value heads copied."""
    number = torch.bucketize(torch.arange(14), torch.tensor(EDGES[1:]), right=True)
    distance = torch.arange(14)[:, None] - torch.arange(14)[None, :]
    seen = (distance >= 0) & (distance < (window or 14)) & (number[:, None] == number[None, :])
    k, v = (x.repeat_interleave(3, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / 2.0
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def test_a_window_of_three_counts_the_query_itself() -> None:
    assert band_mask(5, 3, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("backend", ["sdpa", "varlen"])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
def test_outputs_and_gradients_equal_one_big_mask(backend: Backend, window: int | None) -> None:
    given, expected_inputs = inputs(), inputs()
    q, k, v = given
    out = attend(q, k, v, documents(), window, backend)
    q, k, v = expected_inputs
    expected = plainest(q, k, v, window)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    torch.autograd.backward((out * weight).sum())
    torch.autograd.backward((expected * weight).sum())
    for x, y in zip(given, expected_inputs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_the_operator_passes_torchs_own_checks() -> None:
    from stagecoach_train.model.kernels import document_attention

    found = documents()
    arguments = (*inputs(torch.float32), found.cu_seqlens, found.max_seqlen, 3, "varlen")
    torch.library.opcheck(document_attention, arguments)
