"""A Hub directory with ``pytorch_model.bin`` (one file, or those that its index names) as named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.errors import DataError, shown
from stagecoach.formats.hf_model import read_json_object
from stagecoach.formats.tensor_file import Array
from stagecoach_convert.pickle_reader import PickledTensor, TorchFile

TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
_MAX_DEPTH = 32


class HubTorch:
    """The tensors of all ``.bin`` files of one Hub directory."""

    def __init__(self, names: Iterable[str], path_of: Callable[[str], Path], origin: str) -> None:
        """Open all files.

        Args:
            names: Files that the directory holds.
            path_of: File name -> local path, called for those that are read.
            origin: Says in messages what was read.

        Raises:
            DataError: The index names a missing file, two files hold the same tensor, or a file is no plain state dict.
        """
        self.origin = origin
        self._found: dict[str, tuple[TorchFile, PickledTensor]] = {}
        for name in self._files(set(names), path_of):
            file = TorchFile(path_of(name))
            for tensor, value in flat_tensors(file.content, f"{origin}: {name}").items():
                if tensor in self._found:
                    raise DataError(f"{origin}: {tensor}: expected in one file, found in {name} and another")
                self._found[tensor] = (file, value)

    def _files(self, present: set[str], path_of: Callable[[str], Path]) -> list[str]:
        if TORCH_WEIGHTS in present:
            return [TORCH_WEIGHTS]
        weight_map = read_json_object(path_of(TORCH_INDEX).read_bytes(), f"{self.origin}: {TORCH_INDEX}").get(
            "weight_map"
        )
        if not isinstance(weight_map, dict) or not weight_map:
            raise DataError(f"{self.origin}: {TORCH_INDEX}: expected tensor names under weight_map")
        files = sorted({str(file) for file in weight_map.values()})
        if missing := [file for file in files if file not in present]:
            raise DataError(
                f"{self.origin}: {TORCH_INDEX} names {', '.join(missing[:3])}, which the directory does not"
                " hold; download it"
                " again"
            )
        return files

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape, by Hub name."""
        return {name: tensor.shape for name, (_, tensor) in self._found.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return one tensor's dtype."""
        return self._found[name][1].dtype

    def tensor(self, name: str) -> Array:
        """Return one tensor as a view of its file."""
        file, tensor = self._found[name]
        return file.array(tensor)


def flat_tensors(content: Any, origin: str) -> dict[str, PickledTensor]:
    """Return all tensors of nested dictionaries, names joined by dots; other values are left out.

    Raises:
        DataError: It is no dictionary, one of its dictionaries stands in it twice (or contains itself), they are nested
            more than 32 deep, or two tensors have one name; ``origin`` is named.
    """
    if not isinstance(content, dict):
        raise DataError(f"{origin}: expected a dictionary of tensors, got {type(content).__name__}")
    found: dict[str, PickledTensor] = {}
    seen: set[int] = set()

    def collect(values: dict[Any, Any], path: tuple[str, ...]) -> None:
        if id(values) in seen or len(path) > _MAX_DEPTH:
            raise DataError(
                f"{origin}: expected dictionaries that stand in one place each, at most {_MAX_DEPTH} deep, got another"
                f" kind under {'.'.join(path)[:120]}"
            )
        seen.add(id(values))
        for name, value in values.items():
            if not isinstance(value, (PickledTensor, dict)):
                continue
            part = name if isinstance(name, str) else shown(name)
            full = ".".join((*path, part))
            if full in found:
                raise DataError(f"{origin}: expected tensors of different names, got {shown(full)} twice")
            if isinstance(value, dict):
                collect(value, (*path, part))
            else:
                found[full] = value

    collect(content, ())
    return found
