"""Data parallelism with sharded weights: PyTorch's FSDP2 around each layer, for cards that cannot hold whole weights.

Each layer is a group of its own, gathered before its forward and backward pass and dropped after; embedding, final
norm and head are the stage's group, so tied weights are one parameter. Rows are cut like everywhere else (see
`shard_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from stagecoach_train.model.transformer import Stage
from stagecoach_train.parallel.parameters import LocalParameter


def shard_stages(
    stages: Sequence[Stage], group: dist.ProcessGroup, device: torch.device, compute_dtype: torch.dtype
) -> None:
    """Turn the stages' parameters into shards, in place; they keep their master dtype."""
    # Loading FSDP2 doubles the start of a rank (it brings sympy and DTensor), so other layouts never do.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = DeviceMesh.from_group(group, device.type)
    wide = torch.promote_types(compute_dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=wide, cast_forward_inputs=False)
    for stage in stages:
        for layer in stage.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                # The loss is already divided by the targets of all ranks: gradients are sums, not means.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


def drop_gathered_weights(stages: Sequence[Stage]) -> None:
    """After a forward pass without backward: forget the gathered weights, which an update would leave stale."""
    for stage in stages:
        for module in stage.modules():
            reshard = getattr(module, "reshard", None)  # FSDPModule's method, without importing the class
            if callable(reshard):
                reshard()


class ShardedWeights:
    """Gradients as FSDP2 leaves them: reduced and cut, on the sharded parameters."""

    def __init__(self, parameters: Sequence[LocalParameter]) -> None:
        """Remember the parameters."""
        self.parameters = parameters

    def begin(self) -> None:
        """Forget the last step's gradients."""
        for local in self.parameters:
            local.parameter.grad = None

    def finish(self) -> list[torch.Tensor]:
        """Return my rows' gradients; a parameter that no micro-batch touched has zeros."""
        return [
            torch.zeros_like(local.weight_shard) if local.parameter.grad is None else local.parameter.grad.to_local()  # type: ignore[attr-defined]
            for local in self.parameters
        ]

    def publish(self) -> None:
        """Nothing to do: weights are gathered anew in the next forward pass."""
