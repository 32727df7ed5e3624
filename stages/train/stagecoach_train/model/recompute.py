"""What a layer keeps for the backward pass and what it computes again, chosen layer by layer.

The modes:

    mode            computed again                                   kept, bf16, Mistral-7B      KiB a token and layer
    none            what autograd or the compiler chooses            everything a product needs  about 136
    selective       norms, RoPE, SiLU(gate) * up                     every matrix product        92
    selective_mlp   also the gate/up product                         the other products          36
    full            everything                                       the layer's input           8
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from stagecoach.recipe.train import RecomputeMode

Function = Callable[..., Any]


def with_recompute(function: Function, mode: RecomputeMode, *, gate_up_rows: int, regather: bool) -> Function:
    """Wrap a layer's function so that its backward pass computes again what the mode says.

    Args:
        function: Takes and returns tensors; must not be random.
        mode: See the table above.
        gate_up_rows: Rows of this rank's gate/up matrix; tells its product from the others.
        regather: Also gather a tensor-parallel layer's inputs again instead of keeping them.
    """
    if mode == "none":
        return function
    # "full" has a policy as well: without one the compiler keeps what custom autograd functions inside a layer keep.
    policy = (
        _compute_everything_again
        if mode == "full"
        else _policy(again_rows=gate_up_rows if mode == "selective_mlp" else None, regather=regather)
    )
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def recomputing(*arguments: Any) -> Any:
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    return recomputing


def _compute_everything_again(_context: Any, _operation: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_RECOMPUTE


def _policy(*, again_rows: int | None, regather: bool) -> Callable[..., CheckpointPolicy]:
    """Keep attention, reduce-scatters and matrix products; compute again the rest and products of that many columns."""
    functional = torch.ops._c10d_functional
    aten = torch.ops.aten
    products = {aten.mm.default, aten.addmm.default, aten.linear.default, aten._scaled_mm.default}
    attention = {
        torch.ops.stagecoach.document_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
    }
    gathers = {functional.all_gather_into_tensor.default, functional.wait_tensor.default}

    def policy(_context: Any, operation: Any, *arguments: Any, **_options: Any) -> CheckpointPolicy:
        if operation in attention or operation is functional.reduce_scatter_tensor.default:
            return CheckpointPolicy.MUST_SAVE
        if operation in products:
            columns = _num_columns(operation, arguments)
            return CheckpointPolicy.PREFER_RECOMPUTE if columns == again_rows else CheckpointPolicy.MUST_SAVE
        if operation in gathers and not regather:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def _num_columns(operation: Any, arguments: tuple[Any, ...]) -> int:
    """Return the columns of a product's result."""
    aten = torch.ops.aten
    if operation is aten.linear.default:
        return int(arguments[1].shape[0])
    second = arguments[2] if operation is aten.addmm.default else arguments[1]
    return int(second.shape[-1])
