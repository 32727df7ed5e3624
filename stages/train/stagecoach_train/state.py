"""Weights and optimizer state in and out, rectangle by rectangle, as numpy arrays of native tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from stagecoach.formats.masters import join_master
from stagecoach_train import masters
from stagecoach_train.optimizer import ShardState
from stagecoach_train.parallel.parameters import LocalParameter
from stagecoach_train.parallel.shares import Rectangle
from stagecoach_train.results import Range, ReadState, ReadWeight, StatePiece

ReadRectangle = Callable[[Rectangle], npt.NDArray[Any]]


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to the CPU as an array of its own; bfloat16 becomes ml_dtypes' bfloat16."""
    host = tensor.detach().to("cpu", copy=True).contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: npt.NDArray[Any] = host.numpy()
    return array


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """Copy an array into a CPU tensor of the same dtype."""
    own = np.array(array, order="C")
    if own.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def fill(local: torch.Tensor, rectangles: Iterator[Rectangle], read: ReadRectangle) -> None:
    """Copy native rectangles into a local tensor; rows in no rectangle (vocabulary padding) become zero."""
    local.zero_()
    for rectangle in rectangles:
        target = rectangle.of(local)
        target.copy_(from_numpy(read(rectangle)).view(target.shape))


@torch.no_grad()
def load_weights(parameters: Sequence[LocalParameter], shards: Sequence[ShardState], read: ReadWeight) -> None:
    """Fill every parameter that this rank holds, and the remainders of the masters that it updates."""
    for local, shard in zip(parameters, shards, strict=True):

        def read_rectangle(rectangle: Rectangle, name: str = local.name) -> npt.NDArray[Any]:
            return read(name, rectangle.rows, rectangle.cols)

        held = local.held_tensor
        if shard.remainder is None:
            fill(held, local.rectangles(local.held), read_rectangle)
            continue
        # In fp32 first: the remainder is what rounding to bf16 loses.
        master = torch.empty(held.shape, dtype=torch.float32)
        fill(master, local.rectangles(local.held), read_rectangle)
        weight, remainder = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
        masters.split_(master, weight, remainder)
        held.copy_(weight)
        start, stop = (row - local.held[0] for row in local.shard)
        shard.remainder.copy_(remainder[start:stop])


@torch.no_grad()
def load_state(parameters: Sequence[LocalParameter], shards: Sequence[ShardState], read: ReadState) -> None:
    """Fill weights and moments from a checkpoint of any layout and either kind of masters."""

    def weight(name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        return whole_master(read, name, rows, cols)

    load_weights(parameters, shards, weight)
    for local, shard in zip(parameters, shards, strict=True):
        for kind, tensor in (("exp_avg", shard.exp_avg), ("exp_avg_sq", shard.exp_avg_sq)):

            def read_rectangle(rectangle: Rectangle, name: str = local.name, kind: str = kind) -> npt.NDArray[Any]:
                return read(name, kind, rectangle.rows, rectangle.cols)

            fill(tensor, local.rectangles(local.shard), read_rectangle)


def whole_master(read: ReadState, name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
    """Return the master values: a stored fp32 weight, or a bf16 weight joined with its 16-bit remainder."""
    weight = read(name, "weight", rows, cols)
    if weight.dtype != ml_dtypes.bfloat16:
        return weight
    try:
        remainder = read(name, "master_remainder", rows, cols)
    except KeyError:
        return weight
    return join_master(weight, remainder)


def state_pieces(parameters: Sequence[LocalParameter], shards: Sequence[ShardState]) -> Iterator[StatePiece]:
    """Yield what this rank must write: its shard of every parameter that it counts."""
    for local, shard in zip(parameters, shards, strict=True):
        if not local.is_counted:
            continue
        kinds = {
            "weight": local.weight_shard,
            "exp_avg": shard.exp_avg,
            "exp_avg_sq": shard.exp_avg_sq,
            "master_remainder": shard.remainder,
        }
        for rectangle in local.rectangles(local.shard):
            for kind, tensor in kinds.items():
                if tensor is not None:
                    yield StatePiece(local.name, kind, rectangle.rows, rectangle.cols, to_numpy(rectangle.of(tensor)))
