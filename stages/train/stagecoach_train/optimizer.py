"""AdamW with decoupled decay on this rank's rows, masters in fp32 or better, the clip factor folded in.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2          g already multiplied by the clip factor
    w = w - w lr wd - lr / (1 - b1^t)  m / (sqrt(v) / sqrt(1 - b2^t) + eps)        t = updates applied, from 1

Decoupled Weight Decay Regularization (Loshchilov and Hutter 2017), the same order of operations as
torch.optim.AdamW. On a GPU one kernel does all of it in one pass over memory; elsewhere plain tensor operations
do, and are its reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stagecoach.recipe.train import TrainConfig
from stagecoach_train import masters, philox
from stagecoach_train.parallel.parameters import LocalParameter
from stagecoach_train.updates import Slice, UpdateNumbers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(slots=True)
class ShardState:
    """What AdamW keeps of one parameter's shard.

    Attributes:
        exp_avg: First moment.
        exp_avg_sq: Second moment.
        remainder: int16, with bf16 weights: what the exact fp32 master has beyond the weight; else None.
    """

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    remainder: torch.Tensor | None


class AdamW:
    """Updates the shards of this rank's parameters in place."""

    def __init__(self, parameters: Sequence[LocalParameter], config: TrainConfig) -> None:
        """Make zero moments, in the dtype the recipe asks for (fp64 follows fp64 compute)."""
        self.parameters = parameters
        self.config = config
        wide = config.compute_dtype == "fp64" and config.moments_dtype == "fp32"
        self.moments_dtype = torch.float64 if wide else DTYPES[config.moments_dtype]
        self.state = [self._zero_state(local.weight_shard) for local in parameters]

    def _zero_state(self, weight: torch.Tensor) -> ShardState:
        return ShardState(
            torch.zeros_like(weight, dtype=self.moments_dtype),
            torch.zeros_like(weight, dtype=self.moments_dtype),
            torch.zeros_like(weight, dtype=torch.int16) if weight.dtype == torch.bfloat16 else None,
        )

    def reset(self) -> None:
        """Set moments and remainders to zero: the state before the first update."""
        for state in self.state:
            for tensor in (state.exp_avg, state.exp_avg_sq, state.remainder):
                if tensor is not None:
                    tensor.zero_()

    @torch.no_grad()
    def update(self, gradients: Sequence[torch.Tensor], factor: torch.Tensor, *, lr: float, update: int) -> None:
        """Apply one update.

        Args:
            gradients: One a parameter, of its shard; may be changed.
            factor: Scalar on the device that gradients are multiplied by; if it is not finite nothing changes.
            lr: Learning rate.
            update: Number of this update, from 1.
        """
        beta1, beta2 = self.config.betas
        numbers = UpdateNumbers(
            update=update,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=self.config.eps,
            step_size=lr / (1 - beta1**update),
            root_correction=(1 - beta2**update) ** 0.5,
            seed=self.config.seed,
        )
        if factor.is_cuda:
            from stagecoach_train.gpu_kernels import adamw_pass  # triton, which only GPU images have

            for part in self._slices(gradients, lr):
                adamw_pass(part, factor, numbers)
        elif torch.isfinite(factor):
            for part in self._slices(gradients, lr):
                plain_adamw(part, factor.item(), numbers)

    def _slices(self, gradients: Sequence[torch.Tensor], lr: float) -> Iterator[Slice]:
        for local, state, grad in zip(self.parameters, self.state, gradients, strict=True):
            weight = local.weight_shard
            shape = local.tensor.shape
            for rectangle in local.rectangles(local.shard):
                start, stop = rectangle.local_rows
                yield Slice(
                    weight=weight[start:stop],
                    remainder=None if state.remainder is None else state.remainder[start:stop],
                    grad=grad[start:stop],
                    exp_avg=state.exp_avg[start:stop],
                    exp_avg_sq=state.exp_avg_sq[start:stop],
                    rectangle=rectangle,
                    native_columns=shape[1] if len(shape) == 2 else 1,
                    tensor_number=philox.tensor_number(local.name),
                    decay=lr * self.config.weight_decay if local.decays else 0.0,
                )


def plain_adamw(part: Slice, factor: float, numbers: UpdateNumbers) -> None:
    """Update one slice with tensor operations; the reference of the GPU kernel."""
    wide = torch.promote_types(part.weight.dtype, torch.float32)
    grad = part.grad.to(wide)
    if factor != 1.0:
        grad = grad.mul_(factor) if grad is part.grad else grad * factor
    weight = part.weight if part.remainder is None else masters.join(part.weight, part.remainder)
    exp_avg = part.exp_avg.to(wide).lerp_(grad, 1 - numbers.beta1)
    exp_avg_sq = part.exp_avg_sq.to(wide).mul_(numbers.beta2).addcmul_(grad, grad, value=1 - numbers.beta2)
    denominator = exp_avg_sq.sqrt().div_(numbers.root_correction).add_(numbers.eps)
    if part.decay:
        # Subtracted, not multiplied by 1 - decay: in fp32 that factor would lose most digits of a decay of 1e-6.
        weight.add_(weight, alpha=-part.decay)
    weight.addcdiv_(exp_avg, denominator, value=-numbers.step_size)
    if part.remainder is not None:
        masters.split_(weight, part.weight, part.remainder)
    if part.exp_avg.dtype != wide:
        part.exp_avg.copy_(exp_avg)
        bits = philox.random_bits(numbers.seed, numbers.update, part.tensor_number, element_numbers(part))
        masters.round_stochastically_(exp_avg_sq.float(), bits, part.exp_avg_sq)


def element_numbers(part: Slice) -> torch.Tensor:
    """Return each element's index in the whole native tensor: int64, in the slice's shape."""
    rows = torch.arange(*part.rectangle.rows, device=part.weight.device)
    if part.rectangle.cols is None:
        return rows
    columns = torch.arange(*part.rectangle.cols, device=part.weight.device)
    return rows[:, None] * part.native_columns + columns[None, :]
