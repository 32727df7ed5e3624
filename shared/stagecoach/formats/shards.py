"""Weights cut for the ranks that train them: one safetensors file a (tensor, pipeline) rank, and
``shards.json``.

    shards.json
    tp2-pp1/rank-tp00-pp00.safetensors
    tp2-pp1/rank-tp01-pp00.safetensors

Tensors keep their native names with the global layer number; embedding and head are padded with zero rows.
See docs/formats/shards.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import CorruptObjectError, DataError
from stagecoach.formats.checkpoint import CheckpointIndex, CheckpointReader, Kind, StoredPiece
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.parallel.rectangles import Span
from stagecoach.parallel.slicing import Piece, RankLayout, local_rectangles, padded_vocab_size

FORMAT = "stagecoach-shards"
VERSION = 1
SHARDS_JSON = "shards.json"


def shard_file_name(layout: RankLayout, tp_rank: int, pp_rank: int) -> str:
    """Return the object of one rank: ``tp4-pp1/rank-tp00-pp00.safetensors``; interleaved layouts add
    ``-vp2``.
    """
    folder = f"tp{layout.tensor_parallel}-pp{layout.pipeline_parallel}"
    if layout.virtual_stages > 1:
        folder += f"-vp{layout.virtual_stages}"
    return f"{folder}/rank-tp{tp_rank:02d}-pp{pp_rank:02d}.safetensors"


@dataclass(frozen=True, slots=True)
class Shards:
    """The content of ``shards.json``."""

    spec: ModelSpec
    """Dimensions, without padding."""
    layout: RankLayout
    """How the model is cut."""
    dtype: str
    """Storage type of all tensors: ``F32`` or ``BF16``."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of embedding and head over all ranks, padding included."""
        return padded_vocab_size(self.spec.vocab_size, self.layout.tensor_parallel)

    def to_bytes(self) -> bytes:
        """Return the JSON of ``shards.json``, the same bytes for the same content."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec.to_json(),
            "layout": self.layout.to_json(),
            "dtype": self.dtype,
            "padded_vocab_size": self.padded_vocab_size,
            "padding_rows": [self.spec.vocab_size, self.padded_vocab_size],
            "files": {
                shard_file_name(self.layout, tp, pp): {"tp_rank": tp, "pp_rank": pp} for tp, pp in self.layout.ranks
            },
        }
        return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = SHARDS_JSON) -> Self:
        """Read ``shards.json``.

        Raises:
            CorruptObjectError: It is no description of a version that this one reads.
        """
        try:
            content = json.loads(data)
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise CorruptObjectError(
                    f"{origin}: expected {FORMAT} version {VERSION}, got {content['format']!r} {content['version']!r}"
                )
            return cls(ModelSpec.from_json(content["spec"]), RankLayout(**content["layout"]), str(content["dtype"]))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise CorruptObjectError(f"{origin}: not a description of shards: {error!r}") from error

    def reader(self, path_of: Callable[[str], Path], first: tuple[int, int] = (0, 0)) -> CheckpointReader:
        """Return a reader of native rectangles that takes what it can from the file of rank ``first`` = (tp,
        pp).

        Args:
            path_of: Object name -> local file; called once for each file that is needed, when it is needed.
            first: The rank that reads; of what several ranks hold, its own copy is taken.
        """
        entries = shards_as_pieces(self.spec, self.layout, lambda tp, pp: shard_file_name(self.layout, tp, pp), first)
        index = CheckpointIndex.build(self.spec, entries)
        return CheckpointReader(index, lambda name: TensorFile.open(path_of(name)))

    def reader_of_rank(self, path_of: Callable[[str], Path], tp_rank: int, pp_rank: int) -> CheckpointReader:
        """Return the reader of one rank of any layout; where these shards have that rank too, its own file comes first."""
        first = (tp_rank, pp_rank)
        return self.reader(path_of, first if first in set(self.layout.ranks) else (0, 0))


def shards_as_pieces(
    spec: ModelSpec, layout: RankLayout, file_name: Callable[[int, int], str], first: tuple[int, int] = (0, 0)
) -> list[tuple[str, Kind, StoredPiece]]:
    """Return the entries of an index over sharded weights, each native element once.

    Args:
        spec: Dimensions of the model.
        layout: How it was cut.
        file_name: ``(tp_rank, pp_rank)`` -> file; its tensors carry the native names.
        first: The rank whose own copy is taken of what several ranks hold, so that it reads nobody else's
            file.
    """
    entries: list[tuple[str, Kind, StoredPiece]] = []
    taken: set[tuple[str, Span, Span | None]] = set()
    for tp_rank, pp_rank in sorted(layout.ranks, key=lambda rank: rank != first):
        for tensor in local_rectangles(spec, layout, tp_rank, pp_rank):
            for piece in tensor.pieces:
                if (tensor.name, piece.rows, piece.cols) in taken:
                    continue
                taken.add((tensor.name, piece.rows, piece.cols))
                entries.append((tensor.name, "weight", _stored(file_name(tp_rank, pp_rank), tensor.name, piece)))
    return entries


def _stored(file: str, tensor: str, piece: Piece) -> StoredPiece:
    return StoredPiece(file, tensor, piece.rows, piece.cols, piece.local_rows, piece.local_cols)
