"""Keeps tokenised documents on scratch disk until the packing plan is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach_pack.cutting import Piece
from stagecoach_pack.scratch import RecordFile

_CHUNK_TOKENS = 1 << 20

_DOCUMENT = np.dtype(
    [
        ("first_token", "<u8"),
        ("conversation", "<u8"),
        ("num_tokens", "<u4"),
        ("num_targets", "<u4"),
        ("skipped_tokens", "<u4"),
        ("flags", "<u4"),
    ]
)


class DocumentStore:
    """Documents in the order in which they were tokenised.

    A document's number here is its place in that order; ``conversations`` says which spooled conversation it comes
    from.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        """Start an empty store in a scratch folder.

        Args:
            folder: Where the scratch files go.
            dtype: Stored dtype of a token.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._dtype = dtype
        self._paths = (folder / "tokens.scratch", folder / "trained.scratch")
        self._tokens, self._trained = (
            open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by close()
            for path in self._paths
        )
        self._documents = RecordFile(folder / "documents.scratch", _DOCUMENT)
        self._num_tokens = 0

    def add(self, piece: Piece, conversation: int) -> None:
        """Append one document."""
        self._tokens.write(piece.ids.astype(self._dtype).data)
        self._trained.write(piece.trained.data)
        length, targets = len(piece.ids), int(np.count_nonzero(piece.trained))
        self._documents.append(self._num_tokens, conversation, length, targets, piece.skipped, piece.flags)
        self._num_tokens += length

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._documents)

    @property
    def conversations(self) -> npt.NDArray[np.uint64]:
        """Spooled conversation of each document, uint64."""
        return self._column("conversation")

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each document, uint32."""
        return self._column("num_tokens")

    @property
    def targets(self) -> npt.NDArray[np.uint32]:
        """Trained tokens of each document, uint32."""
        return self._column("num_targets")

    @property
    def skipped(self) -> npt.NDArray[np.uint32]:
        """Tokens of the conversation before each document, uint32."""
        return self._column("skipped_tokens")

    @property
    def flags(self) -> npt.NDArray[np.uint32]:
        """Flags of the packed format, uint32."""
        return self._column("flags")

    def _column(self, name: str) -> npt.NDArray[Any]:
        return self._documents.records[name]

    def chunks(self, order: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]]:
        """Yield tokens and trained bytes of the documents in ``order``, joined to chunks of about a million tokens."""
        self._tokens.flush()
        self._trained.flush()
        if not len(order):
            return
        tokens = np.memmap(self._paths[0], self._dtype, mode="r").view(np.ndarray)  # slices are quicker
        trained = np.memmap(self._paths[1], np.uint8, mode="r").view(np.ndarray)
        borders = np.cumsum(self.lengths[order], dtype=np.int64)
        last = int(borders[-1])
        wanted = np.arange(_CHUNK_TOKENS, last + _CHUNK_TOKENS, _CHUNK_TOKENS)
        places = np.minimum(np.searchsorted(borders, wanted), len(order) - 1) + 1
        first = 0
        for border in places.tolist():
            records = self._documents.records[order[first:border]]
            first = border
            if len(records):
                begins = records["first_token"]
                ranges = [*map(slice, begins.tolist(), (begins + records["num_tokens"]).tolist())]
                yield (
                    np.concatenate([tokens[part] for part in ranges]),
                    np.concatenate([trained[part] for part in ranges]),
                )

    def close(self) -> None:
        """Remove the scratch files."""
        self._tokens.close()
        self._trained.close()
        self._documents.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
