"""Reads and writes safetensors files with numpy alone, mapped in place and one tensor at a time.

The file: 8 bytes little-endian length of the header, the header as JSON padded with spaces so that the data
begins at a multiple of 8, then the tensors' bytes without holes. The ``safetensors`` package reads what is
written here and the other way round; its numpy reader needs the whole file in memory for bfloat16, which is
why this one exists.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError, shown

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

BFLOAT16 = DTYPES["BF16"]
MAX_HEADER_BYTES = 100_000_000
_MAX_BYTES = 2**63
_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    """First byte, from the start of the file."""
    size_bytes: int


class TensorFile:
    """An open safetensors file, mapped read-only; arrays that it hands out are views that keep the mapping
    alive.
    """

    def __init__(self, origin: str, data: mmap.mmap | bytes) -> None:
        """Parse the header of a whole file's bytes; use ``open`` for a path.

        Raises:
            DataError: The bytes are no valid safetensors file; ``origin`` and the reason are named.
        """
        self.origin = origin
        self._data = data
        self.tensors, self.metadata = parse_header(origin, data, len(data))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Map the file at ``path``.

        Raises:
            DataError: It is no valid safetensors file (too short, bad header, overlapping or missing bytes).
        """
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataError(f"{path}: expected a safetensors file, got an empty one")
            return cls(str(path), mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def names(self) -> list[str]:
        """Return all tensor names, in file order."""
        return list(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a tensor's dtype."""
        return self._stored(name).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._stored(name).shape

    def tensor(self, name: str) -> Array:
        """Return a whole tensor as a read-only view of the file, without copying.

        Raises:
            DataError: The file has no such tensor.
        """
        stored = self._stored(name)
        count = math.prod(stored.shape)
        if count == 0:
            return np.empty(stored.shape, stored.dtype)
        return np.frombuffer(self._data, stored.dtype, count, stored.start).reshape(stored.shape)

    def rows(self, name: str, start: int, end: int) -> Array:
        """Return rows ``[start, end)`` of a tensor as a view.

        Raises:
            DataError: The rows are outside the tensor.
        """
        return self.rectangle(name, (start, end), None)

    def rectangle(self, name: str, rows: tuple[int, int], cols: tuple[int, int] | None) -> Array:
        """Return a rectangle of a tensor as a view; ``cols`` None takes all columns, or a one-dimensional
        tensor.

        Raises:
            DataError: The rectangle is outside the tensor.
        """
        shape = self._stored(name).shape
        inside = len(shape) >= 1 and 0 <= rows[0] <= rows[1] <= shape[0]
        if cols is not None:
            inside = inside and len(shape) == 2 and 0 <= cols[0] <= cols[1] <= shape[1]
        if not inside:
            raise DataError(f"{self.origin}: {name}: expected rows {rows} and columns {cols} inside its shape {shape}")
        view = self.tensor(name)[rows[0] : rows[1]]
        return view if cols is None else view[:, cols[0] : cols[1]]

    def span_of_rows(self, name: str, start: int, end: int) -> tuple[int, int]:
        """Return the bytes of the file in which rows ``[start, end)`` of a tensor lie: first, and the one after the last."""
        stored = self._stored(name)
        row_bytes = stored.size_bytes // stored.shape[0]
        return stored.start + start * row_bytes, stored.start + end * row_bytes

    def _stored(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            some = ", ".join(list(self.tensors)[:5])
            raise DataError(
                f"{self.origin}: expected a tensor {name!r}, it holds {len(self.tensors)} others ({some}, ..)"
            )
        return self.tensors[name]


def parse_header(
    origin: str, data: mmap.mmap | bytes, size_bytes: int
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors and the metadata that a file's first bytes describe.

    Args:
        origin: Name of the file, for messages.
        data: The file's bytes, at least as far as the header goes.
        size_bytes: Size of the whole file.

    Raises:
        DataError: Anything in it contradicts the format or the file's size.
    """
    header = _header_json(origin, data, size_bytes)
    length = int.from_bytes(data[:8], "little")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DataError(f"{origin}: expected text values under __metadata__ of the safetensors header")
    spans = sorted((*_offsets(origin, name, entry), name) for name, entry in header.items())
    tensors: dict[str, StoredTensor] = {}
    at = 0
    for start, end, name in spans:
        if start != at:
            problem = "overlaps the tensor before it" if start < at else "leaves a hole before it"
            raise DataError(f"{origin}: {name}: {problem} (it begins at byte {start} of the data, expected {at})")
        at = end
        tensors[name] = _stored_tensor(origin, name, header[name], 8 + length + start, end - start)
    if 8 + length + at != size_bytes:
        cut = "truncated" if size_bytes < 8 + length + at else "longer than its header says"
        raise DataError(f"{origin}: {cut}: expected {8 + length + at} bytes, got {size_bytes}; download it again")
    return tensors, metadata


def _header_json(origin: str, data: mmap.mmap | bytes, size_bytes: int) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if size_bytes < 8 or length > MAX_HEADER_BYTES or 8 + length > size_bytes:
        raise DataError(
            f"{origin}: expected a safetensors header inside {size_bytes} bytes, got a header"
            f" length of {length}; not safetensors, or truncated"
        )
    try:
        header = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{origin}: its safetensors header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise DataError(f"{origin}: expected a JSON object as safetensors header, got {type(header).__name__}")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name is given twice")
    return names


def _offsets(origin: str, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(value) is int for value in offsets)):
        raise DataError(f"{origin}: {name}: expected data_offsets of two whole numbers, got {shown(offsets)}")
    start, end = offsets
    if not 0 <= start <= end < _MAX_BYTES:
        raise DataError(f"{origin}: {name}: expected data_offsets in order and below 2^63, got {shown(offsets)}")
    return start, end


def _stored_tensor(origin: str, name: str, entry: dict[str, Any], start: int, size_bytes: int) -> StoredTensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"{origin}: {name}: expected a dtype of {', '.join(DTYPES)}, got {shown(dtype)}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < _MAX_BYTES for size in shape):
        raise DataError(f"{origin}: {name}: expected a shape of whole numbers, got {shown(shape)}")
    # An array of none has a reach too, and numpy bounds both it and the number of dimensions.
    if len(shape) > _MAX_DIMENSIONS or math.prod(size or 1 for size in shape) * DTYPES[dtype].itemsize >= _MAX_BYTES:
        raise DataError(
            f"{origin}: {name}: expected a shape of at most {_MAX_DIMENSIONS} dimensions and 2^63 bytes, got"
            f" {shown(shape)}"
        )
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if wanted != size_bytes:
        raise DataError(
            f"{origin}: {name}: expected {wanted} bytes for shape {shown(shape)} of {dtype}, its offsets span"
            f" {size_bytes}"
        )
    return StoredTensor(DTYPES[dtype], tuple(shape), start, size_bytes)


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """One tensor of a file that is about to be written."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    produce: Callable[[], Array | Iterable[Array]]
    """Called when its turn comes: the whole tensor, or its rows in parts that follow each other, so that a
    large tensor never lies in memory as a whole."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensor_file(
    stream: BinaryIO, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file front to back, one tensor at a time.

    The tensors lie in the given order, larger item sizes first, so that each is aligned to its own item size.

    Args:
        stream: Open for sequential writing.
        tensors: What to write.
        metadata: Text pairs for the header's ``__metadata__``.

    Raises:
        ValueError: A name is given twice, or what ``produce`` returned has another dtype or shape than
        announced.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    stream.write(_header_bytes(ordered, metadata or {}))
    for tensor in ordered:
        produced = tensor.produce()
        written = 0
        for part in [produced] if isinstance(produced, np.ndarray) else produced:
            if part.dtype != tensor.dtype or part.shape[1:] != tensor.shape[1:] or part.ndim != len(tensor.shape):
                raise ValueError(
                    f"{tensor.name}: announced {tensor.dtype} {tensor.shape}, got {part.dtype} {part.shape}"
                )
            written += part.nbytes
            if part.nbytes:
                stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        if written != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: announced {tensor.size_bytes} bytes for {tensor.shape}, got {written}")


def _header_bytes(tensors: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for tensor in tensors:
        if tensor.name in header:
            raise ValueError(f"{tensor.name}: given twice for one tensor file")
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size_bytes],
        }
        at += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
