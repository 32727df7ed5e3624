"""Greedy decoding with a key/value cache: each token is computed once, on any layout, without compiling anything.

The weights and the block are those of training; three things differ: attention looks into a cache, blocks run as they
are (a compiled graph holds for one length only), and every tensor-parallel rank has all tokens (one cannot be shared).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stagecoach_train.model.blocks import BlockDims, BlockWeights, decoder_block
from stagecoach_train.model.rope import Rotary
from stagecoach_train.parallel.tensor_parallel import TensorParallel

# T new tokens, C cached tokens before them, H query heads, G key/value heads, D head_dim


class Decoding:
    """The cache of one answer on one rank.

    Attributes:
        exchange: Replaces the exchange of training; every rank has all tokens.
        num_cached: C, tokens whose keys and values every layer has.
    """

    def __init__(self, dims: BlockDims, exchange: TensorParallel, *, max_tokens: int) -> None:
        """Hold up to `max_tokens`; memory is taken layer by layer at the first use."""
        self.dims, self.exchange, self.max_tokens = dims, exchange, max_tokens
        self.num_cached = 0
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(self, layer: int, x_TE: torch.Tensor, weights: BlockWeights, rotary: Rotary) -> torch.Tensor:
        """Apply one layer to the new tokens."""

        def attend(q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> torch.Tensor:
            return self._attend(layer, q_THD, k_TGD, v_TGD)

        return decoder_block(x_TE, weights, rotary.cos_T1F, rotary.sin_T1F, self.dims, attend, self.exchange)

    def advance(self, num_tokens: int) -> None:
        """After all layers: the new tokens are cached ones now."""
        self.num_cached += num_tokens

    def _attend(self, layer: int, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> torch.Tensor:
        if layer not in self._cache:
            shape = (self.max_tokens, *k_TGD.shape[1:])
            self._cache[layer] = (k_TGD.new_empty(shape), v_TGD.new_empty(shape))
        keys, values = self._cache[layer]
        start, stop = self.num_cached, self.num_cached + q_THD.shape[0]
        keys[start:stop], values[start:stop] = k_TGD, v_TGD
        distance = torch.arange(start, stop, device=q_THD.device)[:, None] - torch.arange(stop, device=q_THD.device)
        seen = distance >= 0
        if self.dims.window is not None:
            seen &= distance < self.dims.window
        q_1HTD, k_1GCD, v_1GCD = (x.transpose(0, 1)[None] for x in (q_THD, keys[:stop], values[:stop]))
        shares_heads = q_THD.shape[1] != k_TGD.shape[1]
        out = F.scaled_dot_product_attention(q_1HTD, k_1GCD, v_1GCD, attn_mask=seen, enable_gqa=shares_heads)
        return out[0].transpose(0, 1)
