"""Puts the Hub's tensors together from the rectangles of a checkpoint: unfused, without padding, in the dtype
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from stagecoach.architectures.hf_names import HubTensor, hub_tensors
from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.formats.casting import checked_parts
from stagecoach.formats.checkpoint import CheckpointReader
from stagecoach.formats.tensor_file import BFLOAT16, DTYPES, Array, TensorToWrite
from stagecoach.parallel.rectangles import Span

_ROWS_BYTES_AT_ONCE = 64 * 1024 * 1024

HUB_DTYPES: dict[str, tuple[np.dtype[Any], str]] = {
    "bf16": (BFLOAT16, "bfloat16"),
    "fp16": (DTYPES["F16"], "float16"),
    "fp32": (DTYPES["F32"], "float32"),
}
"""dtype of the recipe -> numpy's, and the name in config.json."""


def hub_weights(
    reader: CheckpointReader, spec: ModelSpec, dtype: Literal["bf16", "fp16", "fp32"], on_part: Callable[[int], None]
) -> list[TensorToWrite]:
    """Return every tensor of the Hub directory, to be read when its turn comes.

    Args:
        reader: The checkpoint.
        spec: The model's dimensions; its vocabulary has no padding.
        dtype: Of the written tensors. bf16 is the weight as it was trained with where that is bf16; all
            others start from the fp32 master.
        on_part: Called with the bytes of each part that was written.
    """
    return [_tensor(reader, tensor, HUB_DTYPES[dtype][0], on_part) for tensor in hub_tensors(spec)]


def bytes_read(
    reader: CheckpointReader, spec: ModelSpec, dtype: Literal["bf16", "fp16", "fp32"]
) -> Iterator[tuple[str, Span]]:
    """Yield file and bytes of all that ``hub_weights`` will read; only the headers of the files are read for it."""
    for tensor in native_tensors(spec):
        is_weight = _takes_weight(reader, tensor.name, HUB_DTYPES[dtype][0])
        for kind in ("weight",) if is_weight else reader.master_kinds(tensor.name):
            cols = (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
            yield from reader.byte_spans(tensor.name, kind, (0, tensor.shape[0]), cols)


def _tensor(
    reader: CheckpointReader, tensor: HubTensor, dtype: np.dtype[Any], on_part: Callable[[int], None]
) -> TensorToWrite:
    def produce() -> Iterator[Array]:
        for rows in _row_runs(tensor):
            read = _read(reader, tensor.native, rows, dtype)
            for part in checked_parts(tensor.name, read, dtype, advice="choose another export.iteration"):
                yield part
                on_part(part.nbytes)

    return TensorToWrite(tensor.name, dtype, tensor.shape, produce)


def _row_runs(tensor: HubTensor) -> Iterator[tuple[int, int]]:
    """Yield the native rows in order, long runs cut so that little of a large embedding lies in memory."""
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    step = max(1, _ROWS_BYTES_AT_ONCE // (4 * columns))
    for start, end in tensor.native_rows:
        for at in range(start, end, step):
            yield at, min(at + step, end)


def _takes_weight(reader: CheckpointReader, name: str, dtype: np.dtype[Any]) -> bool:
    """Say whether a tensor is exported as the weight that was trained with, and not from its master."""
    return dtype == BFLOAT16 and "weight" in reader.index.kinds(name) and reader.dtype(name) == BFLOAT16


def _read(reader: CheckpointReader, name: str, rows: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    if _takes_weight(reader, name, dtype):
        return reader.read(name, "weight", rows)
    return reader.read_master(name, rows)
