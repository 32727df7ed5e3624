"""The native form of a model: fused projections, the final vocabulary, and everything that export will need
of its base.

    model.json                          dimensions, storage dtype, which file holds which tensor, the base
    model's config model.safetensors                   all tensors, or
    model-00001-of-00004.safetensors    .. several files of at most 5 GB each

See docs/formats/native.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.errors import CorruptObjectError, DataError
from stagecoach.formats.tensor_file import Array, TensorFile

FORMAT = "stagecoach-native"
VERSION = 1
MODEL_JSON = "model.json"


@dataclass(frozen=True, kw_only=True)
class NativeModel:
    """The content of ``model.json``."""

    spec: ModelSpec
    """Dimensions, with the final vocabulary."""
    dtype: str
    """Storage type of all tensors: ``F32`` or ``BF16``."""
    files: Mapping[str, str]
    """Native tensor -> file."""
    base_config: Mapping[str, Any]
    """The base model's whole config.json; export changes it and nothing else."""
    base_generation_config: Mapping[str, Any] | None = None
    """The base model's generation_config.json, if it had one."""
    source_vocab_size: int
    """Rows of the base model's embedding; the rows from here on are new."""
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    """Token -> row, of the rows that were added."""
    dropped: tuple[str, ...] = ()
    """Tensors of the base model that were knowingly left out."""

    def to_bytes(self) -> bytes:
        """Return the JSON of ``model.json``, the same bytes for the same content."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec.to_json(),
            "dtype": self.dtype,
            "files": dict(self.files),
            "base_config": dict(self.base_config),
            "base_generation_config": None
            if self.base_generation_config is None
            else dict(self.base_generation_config),
            "source_vocab_size": self.source_vocab_size,
            "new_tokens": dict(self.new_tokens),
            "dropped": list(self.dropped),
        }
        return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = MODEL_JSON) -> Self:
        """Read ``model.json``.

        Raises:
            CorruptObjectError: It is no description of a version that this one reads.
            DataError: It names files for other tensors than its dimensions ask for.
        """
        try:
            content = json.loads(data)
            found = (content.pop("format"), content.pop("version"))
            if found != (FORMAT, VERSION):
                raise CorruptObjectError(
                    f"{origin}: expected {FORMAT} version {VERSION}, got {found[0]!r} {found[1]!r}"
                )
            spec = ModelSpec.from_json(content.pop("spec"))
            dropped = tuple(content.pop("dropped"))
            model = cls(spec=spec, dropped=dropped, **content)
            differing = {tensor.name for tensor in native_tensors(spec)} ^ set(model.files)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise CorruptObjectError(f"{origin}: not a native model description: {error!r}") from error
        if differing:
            raise DataError(
                f"{origin}: expected a file for every tensor of its dimensions; these differ: {sorted(differing)[:5]}"
            )
        return model


class NativeReader:
    """Reads native tensors by name from whichever file holds them."""

    def __init__(self, model: NativeModel, path_of: Callable[[str], Path]) -> None:
        """Read through ``model``; ``path_of`` gives the local file of a name, and is called once for each
        that is needed.
        """
        self.model = model
        self._shapes = {tensor.name: tensor.shape for tensor in native_tensors(model.spec)}
        self._path_of = path_of
        self._open: dict[str, TensorFile] = {}

    def rectangle(self, name: str, rows: tuple[int, int] | None = None, cols: tuple[int, int] | None = None) -> Array:
        """Return a rectangle of one tensor as a view of its file; None takes all.

        Raises:
            DataError: The tensor's shape in the file is not what the dimensions ask for.
        """
        file = self.model.files[name]
        if file not in self._open:
            self._open[file] = TensorFile.open(self._path_of(file))
        opened = self._open[file]
        if opened.shape(name) != self._shapes[name]:
            raise DataError(f"{opened.origin}: {name}: expected shape {self._shapes[name]}, got {opened.shape(name)}")
        return opened.rectangle(name, rows or (0, self._shapes[name][0]), cols)


def split_into_files(sizes_bytes: Mapping[str, int], max_file_size_bytes: int, stem: str = "model") -> dict[str, str]:
    """Return the file of each tensor, filled in order so that no file exceeds the limit unless a single
    tensor does.

    Examples:
        >>> list(split_into_files({"a": 6, "b": 5, "c": 4}, 10).values())[1:]
        ['model-00002-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        >>> split_into_files({"a": 6}, 10)
        {'a': 'model.safetensors'}
    """
    number, filled = 1, 0
    numbers: dict[str, int] = {}
    for name, size_bytes in sizes_bytes.items():
        if filled and filled + size_bytes > max_file_size_bytes:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size_bytes
    if number == 1:
        return dict.fromkeys(sizes_bytes, f"{stem}.safetensors")
    return {name: f"{stem}-{at:05d}-of-{number:05d}.safetensors" for name, at in numbers.items()}
