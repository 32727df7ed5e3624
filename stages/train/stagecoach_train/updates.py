"""What one update of AdamW is told, shared by the optimizer and by the GPU kernel that does it in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stagecoach_train.parallel.shares import Rectangle


@dataclass(frozen=True, slots=True)
class UpdateNumbers:
    """The scalars of one update, the same for all parameters."""

    update: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    step_size: float
    root_correction: float
    seed: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One native rectangle of a shard, as flat-contiguous views; padding rows of the vocabulary are in none."""

    weight: torch.Tensor
    remainder: torch.Tensor | None
    grad: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    rectangle: Rectangle
    native_columns: int
    tensor_number: int
    decay: float
