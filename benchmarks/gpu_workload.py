"""The work that every GPU benchmark does, ours and the peer's: Mistral-7B shapes, one mix of documents, one formula for MFU.

Documents are lognormal (median 735 tokens, sigma 0.8) cut to fill the stream, as in chat data; every second token is
trained. F = 6 N_mm + 6 L d S_bar FLOP a token: forward and backward without recompute, causal attention halved and
counted by document, head counted for all tokens. MFU divides by the bf16 peak that the vendor states for dense matrices.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
HIDDEN, MLP, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, VOCABULARY = 4096, 14336, 32, 8, 128, 32_000


def document_lengths(num_tokens: int, seed: int) -> list[int]:
    """Return lengths that add up to ``num_tokens``."""
    draw, lengths = random.Random(seed), list[int]()
    while (left := num_tokens - sum(lengths)) > 0:
        lengths.append(min(int(draw.lognormvariate(6.6, 0.8)) + 32, left))
    return lengths


def mean_attended_tokens(streams: list[list[int]]) -> float:
    """Return S_bar, the token-weighted mean document length."""
    return sum(n * n for lengths in streams for n in lengths) / sum(sum(lengths) for lengths in streams)


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of a model with this many layers."""

    num_layers: int
    mean_attended_tokens: float

    @property
    def per_token(self) -> float:
        """F of the module's docstring."""
        layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * NUM_KV_HEADS * HEAD_DIM + 3 * HIDDEN * MLP
        matrices = self.num_layers * layer + VOCABULARY * HIDDEN
        return 6 * matrices + 6 * self.num_layers * HIDDEN * self.mean_attended_tokens

    def mfu(self, tokens_per_second_per_gpu: float, card: str) -> float:
        """Return the share of the card's bf16 peak, 0 to 1."""
        peak = next(flops for name, flops in PEAK_FLOPS.items() if name in card)
        return self.per_token * tokens_per_second_per_gpu / peak


def matmul_ceiling_flops(size: int = 8192) -> float:
    """Measure what this card does with one large bf16 matrix product, random data; FLOP/s, median of ten."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(seconds[3:])[5]
