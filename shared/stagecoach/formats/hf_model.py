"""Reads and writes a model directory as the Hugging Face Hub holds it, without transformers and one tensor at
a time.

config.json    generation_config.json    model.safetensors, or model-0000N-of-0000M.safetensors with
model.safetensors.index.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagecoach.errors import DataError, shown
from stagecoach.formats.native import split_into_files
from stagecoach.formats.tensor_file import Array, TensorFile, TensorToWrite

CONFIG_JSON = "config.json"
GENERATION_CONFIG_JSON = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

#: transformers before 4.48 refuses a file whose metadata does not say which framework it is for.
HUB_METADATA = {"format": "pt"}
_MAX_ID = 2**31


class TensorSource(Protocol):
    """Named tensors of a base model, whatever kind of file they come from."""

    origin: str
    """Says in messages what was read."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape, by Hub name."""
        ...

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return one tensor's dtype."""
        ...

    def tensor(self, name: str) -> Array:
        """Return one tensor, mapped where the file allows it."""
        ...


class HubSafetensors:
    """The safetensors files of a Hub directory: one file, or those that the index names."""

    def __init__(self, names: Iterable[str], path_of: Callable[[str], Path], origin: str) -> None:
        """Open all files and check them against the index.

        Args:
            names: Files that the directory holds.
            path_of: File name -> local path, called for those that are read.
            origin: Says in messages what was read.

        Raises:
            DataError: The index names a missing file or tensor, or two files hold the same tensor.
        """
        self.origin = origin
        present = set(names)
        index = _weight_map(path_of(WEIGHTS_INDEX).read_bytes(), origin) if WEIGHTS_INDEX in present else None
        files = [WEIGHTS] if index is None else sorted(set(index.values()))
        if missing := [file for file in files if file not in present]:
            raise DataError(
                f"{origin}: {WEIGHTS_INDEX} names {', '.join(missing[:3])}, which the directory"
                " does not hold;"
                " download it again"
            )
        self._files: dict[str, TensorFile] = {}
        for file in files:
            opened = TensorFile.open(path_of(file))
            for name in opened.names():
                if name in self._files:
                    raise DataError(f"{origin}: {name}: expected in one file, found in {file} and another")
                self._files[name] = opened
        if index is not None and (absent := sorted(set(index) - set(self._files))):
            raise DataError(
                f"{origin}: {WEIGHTS_INDEX} lists tensors that its files do not hold: {', '.join(absent[:5])}"
            )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape, by Hub name."""
        return {name: file.shape(name) for name, file in self._files.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return one tensor's dtype."""
        return self._files[name].dtype(name)

    def tensor(self, name: str) -> Array:
        """Return one tensor as a view of its file."""
        return self._files[name].tensor(name)


def read_json_object(data: bytes, origin: str) -> dict[str, Any]:
    """Return the JSON object in ``data``.

    Raises:
        DataError: It is no JSON, or no object.
    """
    try:
        content = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(content).__name__}")
    return content


def write_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON as the Hub writes it: two spaces, sorted names, a final newline."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def vocabulary(tokenizer_json: bytes, origin: str = "tokenizer.json") -> dict[str, int]:
    """Return every token of a ``tokenizer.json`` with its id, added tokens included.

    Raises:
        DataError: The file is not of that form, an id is no whole number from 0 on, or two tokens have the same one.
    """
    content = read_json_object(tokenizer_json, origin)
    try:
        entries = content["model"]["vocab"]
        # BPE and WordPiece: {token: id}; Unigram: [[token, score], ..] in the order of the ids.
        pairs = entries.items() if isinstance(entries, dict) else ((entry[0], at) for at, entry in enumerate(entries))
        added = [(token["content"], token["id"]) for token in content.get("added_tokens") or []]
        ids: dict[str, int] = {}
        for token, at in (*pairs, *added):
            if type(at) is not int or not 0 <= at < _MAX_ID:
                raise DataError(f"{origin}: expected a whole number from 0 on as id of {shown(token)}, got {shown(at)}")
            ids[str(token)] = at
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{origin}: expected a tokenizer.json of the library tokenizers, with model.vocab and added_tokens: {error!r}"
        ) from error
    if not ids:
        raise DataError(f"{origin}: expected at least one token, got an empty vocabulary")
    tokens = {at: token for token, at in ids.items()}
    if twice := next((token for token, at in ids.items() if tokens[at] != token), None):
        raise DataError(
            f"{origin}: expected an id of its own for every token, got {ids[twice]} for {shown(twice)} and"
            f" {shown(tokens[ids[twice]])}"
        )
    return ids


def hub_weight_files(
    tensors: Sequence[TensorToWrite], max_file_size_bytes: int
) -> tuple[dict[str, list[TensorToWrite]], bytes | None]:
    """Spread the tensors over safetensors files as the Hub does.

    Args:
        tensors: All tensors, in the order in which they shall lie in the files.
        max_file_size_bytes: No file is larger, unless a single tensor is.

    Returns:
        The tensors of each file, by its name; and the content of ``model.safetensors.index.json`` if there
        are several files. Write each with ``write_tensor_file(stream, tensors, HUB_METADATA)``.
    """
    files = split_into_files({tensor.name: tensor.size_bytes for tensor in tensors}, max_file_size_bytes)
    grouped: dict[str, list[TensorToWrite]] = {}
    for tensor in tensors:
        grouped.setdefault(files[tensor.name], []).append(tensor)
    if len(grouped) == 1:
        return grouped, None
    total_size = sum(tensor.size_bytes for tensor in tensors)
    return grouped, write_json({"metadata": {"total_size": total_size}, "weight_map": files})


def _weight_map(data: bytes, origin: str) -> dict[str, str]:
    weight_map = read_json_object(data, f"{origin}: {WEIGHTS_INDEX}").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(
            f"{origin}: {WEIGHTS_INDEX}: expected tensor names under weight_map, got {type(weight_map).__name__}"
        )
    for file in weight_map.values():
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise DataError(f"{origin}: {WEIGHTS_INDEX}: expected names of safetensors files, got {str(file)[:120]!r}")
    return weight_map
