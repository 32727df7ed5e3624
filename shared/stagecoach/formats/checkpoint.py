"""Which rectangle of which native tensor lies in which file of a checkpoint, so that any layout reads any
other.

A checkpoint is one safetensors file a rank and an ``index.json``. The index maps every native tensor (global
layer number) and *kind* to rectangles that cover it exactly once: tied weights once, padding absent. Kinds:

    weight            the weight as the engine computes with it (fp32 or bf16)
    master            the fp32 master, where the engine keeps one beside a bf16 weight
    master_remainder  int16: the 16 bits that a bf16 weight lacks; ``join_master`` gives the fp32 master
    exp_avg           AdamW's first moment
    exp_avg_sq        AdamW's second moment

See docs/formats/checkpoint.md for the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.errors import CorruptObjectError, DataError
from stagecoach.formats.masters import join_master
from stagecoach.formats.tensor_file import Array, TensorFile
from stagecoach.parallel.rectangles import Rectangle, Span, check_cover, is_inside, num_elements, overlap

FORMAT = "stagecoach-checkpoint"
VERSION = 1
INDEX_NAME = "index.json"

Kind = Literal["weight", "master", "master_remainder", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class MissingKindError(DataError, KeyError):
    """The checkpoint stores nothing of that kind for a tensor; also a KeyError, as it is what a lookup finds
    missing.
    """

    def __str__(self) -> str:
        """Return the sentence, without the quotes that KeyError puts around it."""
        return str(self.args[0])


def rank_file_name(rank: int) -> str:
    """Return the name of one rank's file: ``rank-00003.safetensors``."""
    return f"rank-{rank:05d}.safetensors"


def piece_tensor_name(name: str, kind: Kind, rows: Span, cols: Span | None) -> str:
    """Return a name for one rectangle that no other rectangle of a checkpoint has.

    Examples:
        >>> piece_tensor_name("layers.0.mlp.down.weight", "exp_avg", (0, 64), (32, 64))
        'exp_avg/layers.0.mlp.down.weight/0-64/32-64'
    """
    columns = "" if cols is None else f"/{cols[0]}-{cols[1]}"
    return f"{kind}/{name}/{rows[0]}-{rows[1]}{columns}"


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """One rectangle of a native tensor and where it lies; columns are None for one-dimensional tensors."""

    file: str
    """Name of the file, relative to the index."""
    tensor: str
    """Name of the tensor in that file."""
    rows: Span
    """Rows of the native tensor."""
    cols: Span | None
    """Columns of the native tensor."""
    local_rows: Span
    """Where these rows lie in the stored tensor."""
    local_cols: Span | None
    """Where these columns lie in the stored tensor."""

    @classmethod
    def whole(cls, file: str, tensor: str, rows: Span, cols: Span | None) -> Self:
        """Return a piece that fills its stored tensor."""
        return cls(file, tensor, rows, cols, (0, rows[1] - rows[0]), None if cols is None else (0, cols[1] - cols[0]))

    def to_json(self) -> dict[str, Any]:
        """Return the piece as JSON values; what ``local_rows`` and ``local_cols`` leave out begins at 0."""
        values: dict[str, Any] = {"file": self.file, "tensor": self.tensor, "rows": list(self.rows)}
        if self.cols is not None:
            values["cols"] = list(self.cols)
        if self.local_rows[0]:
            values["local_rows"] = list(self.local_rows)
        if self.local_cols is not None and self.local_cols[0]:
            values["local_cols"] = list(self.local_cols)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returned."""
        rows, cols = _span(values["rows"]), _span(values["cols"]) if "cols" in values else None
        piece = cls.whole(str(values["file"]), str(values["tensor"]), rows, cols)
        local_rows = _span(values["local_rows"]) if "local_rows" in values else piece.local_rows
        local_cols = _span(values["local_cols"]) if "local_cols" in values else piece.local_cols
        return cls(piece.file, piece.tensor, rows, cols, local_rows, local_cols)


def _span(values: Sequence[int]) -> Span:
    start, end = values
    return int(start), int(end)


@dataclass(frozen=True, kw_only=True)
class CheckpointIndex:
    """The content of ``index.json``."""

    spec: ModelSpec
    """Dimensions of the model."""
    tensors: Mapping[str, Mapping[Kind, tuple[StoredPiece, ...]]]
    """Native name -> kind -> rectangles that cover the tensor exactly once."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the writer records beside the tensors (step, attempt, layout, random state); JSON values."""

    @classmethod
    def build(
        cls,
        spec: ModelSpec,
        entries: Iterable[tuple[str, Kind, StoredPiece]],
        state: Mapping[str, Any] | None = None,
    ) -> Self:
        """Gather the rectangles of all ranks and check them.

        Args:
            spec: Dimensions of the model.
            entries: ``(native name, kind, rectangle)`` of every rank, in any order.
            state: See the attribute.

        Raises:
            DataError: A name is unknown, a weight is missing, or the rectangles of a tensor overlap or leave
            a hole.
        """
        shapes = {tensor.name: tensor.shape for tensor in native_tensors(spec)}
        found: dict[str, dict[Kind, list[StoredPiece]]] = {name: {} for name in shapes}
        for name, kind, piece in entries:
            if name not in shapes or kind not in KINDS:
                raise DataError(
                    f"checkpoint: expected native tensors and the kinds {', '.join(KINDS)}, got {name!r} {kind!r}"
                )
            found[name].setdefault(kind, []).append(piece)
        for name, kinds in found.items():
            if "weight" not in kinds and "master" not in kinds:
                raise DataError(
                    f"checkpoint: {name}: expected a weight or a master, got {', '.join(kinds) or 'nothing'}"
                )
            for kind, pieces in kinds.items():
                pieces.sort(key=lambda piece: (piece.rows, piece.cols or (0, 0)))
                check_cover(f"checkpoint: {name} {kind}", shapes[name], [(piece.rows, piece.cols) for piece in pieces])
        frozen = {name: {kind: tuple(kinds[kind]) for kind in KINDS if kind in kinds} for name, kinds in found.items()}
        return cls(spec=spec, tensors=frozen, state=dict(state or {}))

    @property
    def files(self) -> list[str]:
        """Every file that holds a rectangle, sorted."""
        return sorted({piece.file for kinds in self.tensors.values() for pieces in kinds.values() for piece in pieces})

    def kinds(self, name: str) -> tuple[Kind, ...]:
        """Return what is stored of one native tensor.

        Raises:
            DataError: The model has no such tensor.
        """
        if name not in self.tensors:
            raise DataError(f"checkpoint: expected a native tensor of this model, got {name!r}")
        return tuple(self.tensors[name])

    def to_bytes(self) -> bytes:
        """Return the JSON of ``index.json``, the same bytes for the same content."""
        tensors = {
            name: {kind: [piece.to_json() for piece in pieces] for kind, pieces in kinds.items()}
            for name, kinds in self.tensors.items()
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec.to_json(),
            "state": dict(self.state),
            "tensors": tensors,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = INDEX_NAME) -> Self:
        """Read ``index.json`` and check that its rectangles cover every tensor.

        Raises:
            CorruptObjectError: It is no index of a version that this one reads.
            DataError: Its rectangles overlap or leave a hole.
        """
        try:
            content = json.loads(data)
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise CorruptObjectError(
                    f"{origin}: expected {FORMAT} version {VERSION}, got {content['format']!r} {content['version']!r}"
                )
            entries = [
                (name, kind, StoredPiece.from_json(piece))
                for name, kinds in content["tensors"].items()
                for kind, pieces in kinds.items()
                for piece in pieces
            ]
            spec, state = ModelSpec.from_json(content["spec"]), content["state"]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise CorruptObjectError(f"{origin}: not a checkpoint index: {error!r}") from error
        return cls.build(spec, entries, state)


class CheckpointReader:
    """Reads any rectangle of any native tensor from a checkpoint of any layout."""

    def __init__(self, index: CheckpointIndex, open_file: Callable[[str], TensorFile]) -> None:
        """Read through ``index``; ``open_file`` is called once for each file that is needed, when it is
        needed.
        """
        self.index = index
        self._shapes = {tensor.name: tensor.shape for tensor in native_tensors(index.spec)}
        self._open_file = open_file
        self._files: dict[str, TensorFile] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a native tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str, kind: Kind = "weight") -> np.dtype[Any]:
        """Return the dtype in which a native tensor is stored."""
        piece = self._pieces(name, kind)[0]
        return self._file(piece.file).dtype(piece.tensor)

    def read(self, name: str, kind: Kind = "weight", rows: Span | None = None, cols: Span | None = None) -> Array:
        """Return a rectangle in its stored dtype.

        Args:
            name: Native name.
            kind: What of it.
            rows: Rows of the native tensor; None takes all.
            cols: Columns; None takes all, and is the only choice for one-dimensional tensors.

        Returns:
            A view of the file where one stored piece holds all of it, else a new array.

        Raises:
            DataError: The tensor or kind is not stored, the rectangle is outside it, or the files contradict
                the index.
        """
        pieces = self._pieces(name, kind)
        wanted = self._rectangle(name, rows, cols)
        size = num_elements(wanted)
        if size == 0:
            first = pieces[0]
            return self._part(first, ((first.rows[0], first.rows[0]), first.cols)).reshape(_shape(wanted))
        out: Array | None = None
        filled = 0
        for piece in pieces:
            common = overlap((piece.rows, piece.cols), wanted)
            if common is None:
                continue
            part = self._part(piece, common)
            if part.size == size:
                return part
            if out is None:
                out = np.empty(_shape(wanted), part.dtype)
            if out.dtype != part.dtype:
                raise DataError(f"{name} {kind}: expected one dtype, got {out.dtype} and {part.dtype} ({piece.file})")
            _place(out, part, common, wanted)
            filled += part.size
        if out is None or filled != size:
            raise DataError(f"{name} {kind}: {size - filled} of {size} elements of {wanted} are not stored")
        return out

    def byte_spans(self, name: str, kind: Kind, rows: Span, cols: Span | None) -> Iterator[tuple[str, Span]]:
        """Yield file and bytes of whole rows in which a rectangle lies; nothing where the kind is not stored.

        Only the headers of the files are read.
        """
        for piece in self.index.tensors[name].get(kind, ()):
            common = overlap((piece.rows, piece.cols), (rows, cols))
            if common is not None:
                first, stop = _shifted(common[0], piece.local_rows[0] - piece.rows[0])
                yield piece.file, self._file(piece.file).span_of_rows(piece.tensor, first, stop)

    def read_master(self, name: str, rows: Span | None = None, cols: Span | None = None) -> Array:
        """Return a rectangle of the most exact weight there is: master, weight joined with its remainder, or
        weight.

        Returns:
            fp32; or the weight's own dtype where that is fp64, or where bf16 is all that is stored.
        """
        parts = [self.read(name, kind, rows, cols) for kind in self.master_kinds(name)]
        return parts[0] if len(parts) == 1 else join_master(*parts)

    def master_kinds(self, name: str) -> tuple[Kind, ...]:
        """Return what ``read_master`` reads of a tensor: the master, the weight and its remainder, or the weight."""
        kinds = self.index.kinds(name)
        if "master" in kinds:
            return ("master",)
        return ("weight", "master_remainder") if "master_remainder" in kinds else ("weight",)

    def _pieces(self, name: str, kind: Kind) -> tuple[StoredPiece, ...]:
        kinds = self.index.kinds(name)
        if kind not in kinds:
            raise MissingKindError(f"checkpoint: {name}: expected a stored {kind}, it has {', '.join(kinds)}")
        return self.index.tensors[name][kind]

    def _rectangle(self, name: str, rows: Span | None, cols: Span | None) -> Rectangle:
        shape = self._shapes[name]
        if cols is None and len(shape) == 2:
            cols = (0, shape[1])
        rectangle = ((0, shape[0]) if rows is None else rows, cols)
        if not is_inside(rectangle, shape):
            raise DataError(f"{name}: expected rows and columns inside {shape}, got {rectangle}")
        return rectangle

    def _part(self, piece: StoredPiece, native: Rectangle) -> Array:
        rows = _shifted(native[0], piece.local_rows[0] - piece.rows[0])
        cols = native[1]
        if cols is not None and piece.cols is not None and piece.local_cols is not None:
            cols = _shifted(cols, piece.local_cols[0] - piece.cols[0])
        return self._file(piece.file).rectangle(piece.tensor, rows, cols)

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = self._open_file(name)
        return self._files[name]


def _shifted(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by


def _shape(rectangle: Rectangle) -> tuple[int, ...]:
    rows, cols = rectangle
    return (rows[1] - rows[0],) if cols is None else (rows[1] - rows[0], cols[1] - cols[0])


def _place(out: Array, part: Array, at: Rectangle, whole: Rectangle) -> None:
    rows = _shifted(at[0], -whole[0][0])
    target = out[rows[0] : rows[1]]
    if at[1] is not None and whole[1] is not None:
        cols = _shifted(at[1], -whole[1][0])
        target = target[:, cols[0] : cols[1]]
    target[...] = part
