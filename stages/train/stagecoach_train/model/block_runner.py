"""How a layer's function is run: attention kernel, recompute and compilation wrapped around the plain block.

All layers of one recompute mode share one function, so a model compiles at most one graph a mode, whatever its depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stagecoach.recipe.train import RecomputeMode
from stagecoach_train.model import attention
from stagecoach_train.model.attention import Backend, Documents
from stagecoach_train.model.blocks import BlockDims, BlockWeights, Exchange, Product, decoder_block
from stagecoach_train.model.recompute import Function, with_recompute
from stagecoach_train.model.rope import Rotary
from stagecoach_train.model.transformer import RunBlock

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How blocks are run on this rank.

    Attributes:
        backend: Attention kernel.
        gate_up_rows: Rows of this rank's gate/up matrix.
        regather: Gather tensor-parallel inputs again in the backward pass.
        compile_backend: Name of torch.compile's backend; None runs eagerly.
        product: How inputs and weights are multiplied.
    """

    backend: Backend
    gate_up_rows: int
    regather: bool
    compile_backend: str | None
    product: Product = F.linear


class BlockRunner:
    """Makes and keeps one function for each recompute mode."""

    def __init__(self, dims: BlockDims, exchange: Exchange, options: RunOptions) -> None:
        """Nothing is compiled before the first layer runs."""
        self.dims, self.exchange, self.options = dims, exchange, options
        self._functions: dict[RecomputeMode, RunBlock] = {}

    def for_mode(self, mode: RecomputeMode) -> RunBlock:
        """Return the function that runs a layer in this mode."""
        if mode not in self._functions:
            self._functions[mode] = self._make(mode)
        return self._functions[mode]

    def _make(self, mode: RecomputeMode) -> RunBlock:
        options = self.options
        function = with_recompute(self._block(), mode, gate_up_rows=options.gate_up_rows, regather=options.regather)
        compiles = options.compile_backend is not None
        if options.compile_backend is not None:
            function = compiled(function, options.compile_backend)

        def run(x_SE: torch.Tensor, weights: BlockWeights, rotary: Rotary, documents: Documents) -> torch.Tensor:
            spans = () if compiles else documents.spans
            out: torch.Tensor = function(
                x_SE, *weights, rotary.cos_T1F, rotary.sin_T1F, documents.cu_seqlens, documents.max_seqlen, spans
            )
            return out

        return run

    def _block(self) -> Function:
        """Return the block as a function of plain tensors, which compile and checkpoint take best."""
        dims, exchange, options = self.dims, self.exchange, self.options

        def block(
            x_SE: torch.Tensor,
            attention_norm: torch.Tensor,
            qkv: torch.Tensor,
            output: torch.Tensor,
            mlp_norm: torch.Tensor,
            gate_up: torch.Tensor,
            down: torch.Tensor,
            qkv_bias: torch.Tensor | None,
            q_norm: torch.Tensor | None,
            k_norm: torch.Tensor | None,
            cos_T1F: torch.Tensor,
            sin_T1F: torch.Tensor,
            cu_seqlens: torch.Tensor,
            max_seqlen: torch.Tensor,
            spans: tuple[tuple[int, int], ...],
        ) -> torch.Tensor:
            def attend(q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> torch.Tensor:
                documents = Documents(cu_seqlens, max_seqlen, spans)
                return attention.attend(q_THD, k_TGD, v_TGD, documents, dims.window, options.backend)

            weights = BlockWeights(attention_norm, qkv, output, mlp_norm, gate_up, down, qkv_bias, q_norm, k_norm)
            return decoder_block(x_SE, weights, cos_T1F, sin_T1F, dims, attend, exchange, options.product)

        return block


def compiled(function: Callable[..., torch.Tensor], backend: str) -> Callable[..., torch.Tensor]:
    """Compile a function to one static graph."""

    def entry(*arguments: object) -> torch.Tensor:
        return function(*arguments)

    # Dynamo caches by code object and does not look at what a closure holds (recompute policies among it): two modes
    # made by one factory would silently share the first one's graph. Every function gets a code object of its own.
    entry.__code__ = entry.__code__.replace(co_name=f"block_{next(_numbers)}")
    return torch.compile(entry, fullgraph=True, dynamic=False, backend=backend)
