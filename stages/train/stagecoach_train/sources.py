"""Where weights and state come from: the shards at the start, a checkpoint of whatever layout afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.formats.checkpoint import INDEX_NAME, CheckpointIndex, CheckpointReader
from stagecoach.formats.shards import SHARDS_JSON, Shards
from stagecoach.formats.tensor_file import TensorFile
from stagecoach_train.results import Range
from stagecoach_train.train_state import TrainState


class CheckpointSource:
    """Reads rectangles of a checked checkpoint in the form that the engine asks for."""

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        """Read the index; files are mapped when they are needed."""
        self.index = CheckpointIndex.from_bytes(path_of(INDEX_NAME).read_bytes())
        self.state = TrainState.from_json(dict(self.index.state))
        self._reader = CheckpointReader(self.index, lambda name: TensorFile.open(path_of(name)))

    def __call__(self, name: str, kind: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        """Return a rectangle.

        Raises:
            KeyError: This tensor has no such kind in the checkpoint.
        """
        if kind not in self.index.kinds(name):
            raise KeyError(f"{name}: {kind}")
        return self._reader.read(name, kind, rows, cols)


class ShardSource:
    """Reads rectangles of the sharded start weights in the form that the engine asks for."""

    def __init__(self, path_of: Callable[[str], Path], first: tuple[int, int]) -> None:
        """Read ``shards.json``; where several files hold the same, that of rank ``first`` (tp, pp) is read."""
        self.shards = Shards.from_bytes(path_of(SHARDS_JSON).read_bytes())
        self._reader = self.shards.reader_of_rank(path_of, *first)

    def __call__(self, name: str, rows: Range, cols: Range | None) -> npt.NDArray[Any]:
        """Return a rectangle of a weight."""
        return np.asarray(self._reader.read(name, "weight", rows, cols))
