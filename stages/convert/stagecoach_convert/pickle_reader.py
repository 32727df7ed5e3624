"""Reads files that ``torch.save`` has written, without torch and without running anything that they contain.

A pickle is a program: it names functions and calls them. This reader knows tensors and plain values. Every name that a
file asks for is looked up in a table of harmless stand-ins kept here, never imported; a name that is not in the table
is refused before anything is called. Tensors are described, not loaded: their bytes stay in the mapped file until
somebody asks.

The file is a zip archive, as torch has written since 1.6: ``<root>/data.pkl``, ``<root>/data/<key>`` uncompressed.
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.errors import DataError
from stagecoach.formats.tensor_file import DTYPES, Array

_MAX_PICKLE_BYTES = 256 * 1024 * 1024
_MAX_BYTEORDER_BYTES = 16
_LOCAL_HEADER_BYTES = 30

_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
#: Modules whose classes appear in the arguments that Megatron stores; they become ``Opaque`` and nothing of them runs.
_OPAQUE_MODULES = ("megatron.model.enums", "megatron.enums", "megatron.core.enums")


class Namespace:
    """What a stored ``argparse.Namespace`` becomes: its attributes and nothing else."""


class Opaque:
    """A value of a known but foreign class; it keeps nothing and does nothing."""

    def __init__(self, *ignored: object) -> None:
        """Take whatever the file passes."""

    def __setstate__(self, ignored: object) -> None:
        """Take whatever the file sets."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """What a file names as the class of a storage."""

    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the archive."""

    dtype: np.dtype[Any]
    key: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor of the file: where its numbers lie."""

    storage: Storage
    offset: int
    """First element in the storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.storage.dtype


class TorchFile:
    """An opened ``torch.save`` file."""

    def __init__(self, path: Path) -> None:
        """Map the archive and read its pickle.

        Raises:
            DataError: It is no such file, it is damaged, or it asks for something that is not on the whitelist (named).
        """
        self.origin = str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {_inner(info.filename): info for info in archive.infolist() if not info.is_dir()}
                program = self._program(archive)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise DataError(
                f"{path}: expected a file of torch.save (a zip archive, torch 1.6 or later), got something else or half"
                f" of one: {error}; save it again as safetensors"
            ) from error
        with open(path, "rb") as stream:
            self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.content: Any = _load(program, self.origin)

    def _program(self, archive: zipfile.ZipFile) -> bytes:
        order = self._plain(archive, "byteorder", _MAX_BYTEORDER_BYTES)
        if order not in (None, b"little"):
            raise DataError(f"{self.origin}: expected little-endian numbers, got {order!r}")
        program = self._plain(archive, "data.pkl", _MAX_PICKLE_BYTES)
        if program is None:
            raise DataError(
                f"{self.origin}: expected a data.pkl in the archive, found none; save it again as safetensors"
            )
        return program

    def _plain(self, archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes | None:
        """Return an entry's bytes, None if there is none; a compressed one could become a thousand times larger."""
        info = self._entries.get(name)
        if info is None:
            return None
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > max_bytes:
            raise DataError(
                f"{self.origin}: expected {name} of at most {max_bytes:,} bytes, stored as it is, as torch does, got"
                f" {info.file_size:,} from {info.compress_size:,}; save it again as safetensors"
            )
        return archive.read(info)

    def array(self, tensor: PickledTensor) -> Array:
        """Return a tensor's numbers as a read-only view of the file.

        Raises:
            DataError: The file has no such bytes.
        """
        storage = tensor.storage
        info = self._entries.get(f"data/{storage.key}")
        size_bytes = storage.num_elements * storage.dtype.itemsize
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != size_bytes:
            raise DataError(f"{self.origin}: expected {size_bytes} plain bytes under data/{storage.key}, got {info}")
        reach = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        if math.prod(tensor.shape) and reach >= storage.num_elements:
            raise DataError(
                f"{self.origin}: a tensor of {tensor.shape} reaches beyond its {storage.num_elements} numbers"
            )
        start = self._start_of(info) + tensor.offset * storage.dtype.itemsize
        strides = [step * storage.dtype.itemsize for step in tensor.strides]
        if not math.prod(tensor.shape):
            return np.empty(tensor.shape, storage.dtype)
        return np.ndarray(tensor.shape, storage.dtype, self._data, start, strides)

    def _start_of(self, info: zipfile.ZipInfo) -> int:
        """Return where an entry's bytes begin; the local header has an extra field of its own length."""
        header = self._data[info.header_offset : info.header_offset + _LOCAL_HEADER_BYTES]
        if header[:4] != b"PK\x03\x04":
            raise DataError(f"{self.origin}: {info.filename}: expected a zip entry where the directory says; damaged")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + _LOCAL_HEADER_BYTES + name + extra
        if start + info.file_size > len(self._data):
            raise DataError(f"{self.origin}: {info.filename}: truncated; download it again")
        return start


def _inner(name: str) -> str:
    """Return an entry's name without the archive's root folder."""
    return name.split("/", 1)[-1]


def _load(program: bytes, origin: str) -> Any:
    try:
        return _Reader(program, origin).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{origin}: its pickle is damaged: {type(error).__name__}: {error}") from error


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *ignored: object) -> PickledTensor:
    sizes = (offset, *shape, *strides)
    if (
        not isinstance(storage, Storage)
        or len(shape) != len(strides)
        or not all(type(n) is int and n >= 0 for n in sizes)
    ):
        raise DataError("a tensor of it is described in an unknown way")
    return PickledTensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *ignored: object) -> Any:
    return data


def _plain_tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


class _Reader(pickle.Unpickler):
    """Runs a pickle's opcodes with stand-ins for everything that it may name."""

    _KNOWN: Mapping[tuple[str, str], Callable[..., Any] | StorageType] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): Namespace,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch", "Size"): _plain_tuple,
        ("torch", "device"): Opaque,
        **{("torch", name): StorageType(DTYPES[code]) for name, code in _STORAGES.items()},
    }
    #: ``torch.float32`` and the like are values, not calls.
    _VALUES = frozenset(
        {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
    )

    def __init__(self, program: bytes, origin: str) -> None:
        super().__init__(io.BytesIO(program))
        self._origin = origin

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global.

        Raises:
            DataError: It is not on the whitelist; nothing of it was imported or run.
        """
        if (module, name) in self._KNOWN:
            return self._KNOWN[module, name]
        if module == "torch" and name in self._VALUES:
            return f"torch.{name}"
        if module in _OPAQUE_MODULES and name.isidentifier():
            return Opaque
        raise DataError(
            f"{self._origin}: its pickle asks for {module}.{name}, which is not a tensor or a plain value;"
            " nothing of it was"
            " run. Take the model as safetensors, or from a source that you trust"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the description of a storage.

        Raises:
            DataError: The file describes it in an unknown way.
        """
        match pid:
            case ("storage", StorageType(dtype=dtype), str(key), _, int(num_elements)) if num_elements >= 0:
                return Storage(dtype, key, num_elements)
        raise DataError(f"{self._origin}: expected a storage of numbers, its pickle describes {str(pid)[:120]!r}")
