"""What the engine hands back to the training loop: plain numbers and numpy arrays, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Range = tuple[int, int]
"""Half-open range of rows or columns: start, stop."""


class ReadWeight(Protocol):
    """Reads a rectangle of a native tensor from shards or from any checkpoint; vectors have cols None."""

    def __call__(self, name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        """Return the rectangle, in the dtype it is stored in (fp32, or bfloat16 of ml_dtypes)."""


class ReadState(Protocol):
    """Reads a rectangle of a native tensor's weight, remainder or moment from a checkpoint of any layout."""

    def __call__(self, name: str, kind: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        """Return the rectangle; KeyError if the checkpoint holds no such kind for this tensor."""


ReportProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step.

    Attributes:
        loss_sum: Sum of the cross entropy over every target of the step, over all ranks; divide by the targets.
        grad_norm: Global L2 norm of the gradient before clipping.
        skipped: The gradient was not finite, so weights and moments are as before.
    """

    loss_sum: float
    grad_norm: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The held-out loss of one micro-batch, equal on every rank that holds this copy of the model.

    Attributes:
        loss_sum: Sum of the cross entropy over all targets.
        num_targets: Number of targets.
        num_correct: Targets that the greedy choice gets right.
        document_loss_sums: float64 [N], loss sum of each document in the order of cu_seqlens (0 for padding).
        document_num_targets: int64 [N].
        document_num_correct: int64 [N].
    """

    loss_sum: float
    num_targets: int
    num_correct: int
    document_loss_sums: npt.NDArray[np.float64]
    document_num_targets: npt.NDArray[np.int64]
    document_num_correct: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StatePiece:
    """A rectangle of one native tensor that this rank alone writes into a checkpoint.

    Attributes:
        name: Native name, global layer number.
        kind: "weight", "master_remainder" (int16, with a bf16 weight), "exp_avg" or "exp_avg_sq".
        rows: Rows of the native tensor; entries for a vector.
        cols: Columns of the native tensor; None for a vector.
        tensor: The values on the CPU, a copy that later steps do not change.
    """

    name: str
    kind: str
    rows: Range
    cols: Range | None
    tensor: npt.NDArray[Any]
