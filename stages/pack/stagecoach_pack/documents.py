"""Keeps tokenised documents on scratch disk until the packing plan is known, with about 40 bytes a document in
memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach_pack.cutting import Piece

_CHUNK_TOKENS = 1 << 20


class DocumentStore:
    """Documents in the order in which they were tokenised.

    A document's number here is its place in that order; ``conversation`` says which spooled conversation it comes from.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        """Start an empty store in a scratch folder.

        Args:
            folder: Where the two scratch files go.
            dtype: Stored dtype of a token.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._dtype = dtype
        self._paths = (folder / "tokens.scratch", folder / "trained.scratch")
        self._tokens, self._trained = (
            open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by close()
            for path in self._paths
        )
        self._conversations, self._skipped = array("Q"), array("L")
        self._lengths, self._targets = array("L"), array("L")
        self._flags = array("H")

    def add(self, piece: Piece, conversation: int) -> None:
        """Append one document."""
        self._tokens.write(piece.ids.astype(self._dtype).tobytes())
        self._trained.write(piece.trained.astype(np.uint8).tobytes())
        self._conversations.append(conversation)
        self._lengths.append(len(piece.ids))
        self._targets.append(int(np.count_nonzero(piece.trained)))
        self._skipped.append(piece.skipped)
        self._flags.append(piece.flags)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._lengths)

    @property
    def conversations(self) -> npt.NDArray[np.int64]:
        """Spooled conversation of each document, int64."""
        return np.array(self._conversations, np.int64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, int64."""
        return np.array(self._lengths, np.int64)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Trained tokens of each document, int64."""
        return np.array(self._targets, np.int64)

    @property
    def skipped(self) -> npt.NDArray[np.int64]:
        """Tokens of the conversation before each document, int64."""
        return np.array(self._skipped, np.int64)

    @property
    def flags(self) -> npt.NDArray[np.uint16]:
        """Flags of the packed format, uint16."""
        return np.array(self._flags, np.uint16)

    def chunks(self, order: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]]:
        """Yield tokens and trained bytes of the documents in ``order``, joined to chunks of about a million tokens."""
        self._tokens.flush()
        self._trained.flush()
        if not len(order):
            return
        lengths = self.lengths
        ends = np.cumsum(lengths)
        tokens = np.memmap(self._paths[0], self._dtype, mode="r")
        trained = np.memmap(self._paths[1], np.uint8, mode="r")
        borders = np.searchsorted(
            np.cumsum(lengths[order]), np.arange(_CHUNK_TOKENS, lengths[order].sum() + _CHUNK_TOKENS, _CHUNK_TOKENS)
        )
        first = 0
        for border in (np.minimum(borders, len(order) - 1) + 1).tolist():
            chosen = order[first:border].tolist()
            first = border
            if chosen:
                ranges = [slice(int(ends[document] - lengths[document]), int(ends[document])) for document in chosen]
                yield (
                    np.concatenate([tokens[part] for part in ranges]),
                    np.concatenate([trained[part] for part in ranges]),
                )

    def close(self) -> None:
        """Remove the scratch files."""
        self._tokens.close()
        self._trained.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
