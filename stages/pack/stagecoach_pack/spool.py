"""Keeps every conversation that was read, its origin and its hash in scratch files, so that memory does not grow with
the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach_pack.conversation import Conversation, conversation_from_json
from stagecoach_pack.scratch import DigestSet, RecordFile

_BUFFER_BYTES = 1024 * 1024
_CONVERSATIONS_AT_ONCE = 4096

_CONVERSATION = np.dtype(
    [
        ("row", "<u8"),
        ("side", "<u8"),
        ("body_end", "<u8"),
        ("id_end", "<u8"),
        ("digest", "V16"),
        ("source", "<u2"),
        ("file", "<u2"),
        ("is_duplicate", "<u4"),
    ]
)


class Spool:
    """Conversations in the order in which they were read; the arrays have one item for each and are mapped files."""

    def __init__(self, folder: Path) -> None:
        """Start an empty spool in a scratch folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = (folder / "conversations.spool", folder / "ids.spool")
        self._bodies, self._ids = (
            open(path, "w+b", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed by close()
            for path in self._paths
        )
        self._conversations = RecordFile(folder / "origins.spool", _CONVERSATION)
        self._seen = DigestSet(folder)
        self._body_end = self._id_end = 0
        self.file_names: list[str] = []

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self._conversations)

    def add(
        self, conversation: Conversation, source: int, file: int, row: int, *, keep_body: bool = True
    ) -> tuple[int, bool]:
        """Append one conversation; returns its index and whether it equals none before it.

        Args:
            conversation: The conversation.
            source: Index of its source in the recipe.
            file: Index of its file in ``file_names``.
            row: Its row there, from 1.
            keep_body: Let ``conversations`` give it back.

        Raises:
            RowProblem: Its text has no UTF-8 form.
        """
        digest = conversation.digest()
        if keep_body:
            self._body_end += self._bodies.write(conversation.to_json())
        if conversation.identity:
            self._id_end += self._ids.write(conversation.identity.encode("utf-8", "backslashreplace"))
        is_new = self._seen.add(digest)
        index = len(self._conversations)
        side = conversation.side()
        self._conversations.append(row, side, self._body_end, self._id_end, digest, source, file, not is_new)
        return index, is_new

    @property
    def sources(self) -> npt.NDArray[np.uint16]:
        """Source of each conversation, uint16 [n]."""
        return self._column("source")

    @property
    def files(self) -> npt.NDArray[np.uint16]:
        """File of each conversation, as an index into ``file_names``, uint16 [n]."""
        return self._column("file")

    @property
    def rows(self) -> npt.NDArray[np.uint64]:
        """Row of each conversation in its file, from 1, uint64 [n]."""
        return self._column("row")

    @property
    def digests(self) -> npt.NDArray[np.uint8]:
        """Hash of each conversation's messages and tools, uint8 [n, 16]."""
        records, place = self._conversations.records, _CONVERSATION.fields["digest"][1] if _CONVERSATION.fields else 0
        return records.view(np.uint8).reshape(len(records), _CONVERSATION.itemsize)[:, place : place + 16]

    @property
    def sides(self) -> npt.NDArray[np.uint64]:
        """Number of each conversation that decides whether it is held out (``Conversation.side``), uint64 [n]."""
        return self._column("side")

    @property
    def duplicates(self) -> npt.NDArray[np.bool_]:
        """Whether each conversation equals one before it, bool [n]."""
        return np.asarray(self._column("is_duplicate") != 0)

    def _column(self, name: str) -> npt.NDArray[Any]:
        return self._conversations.records[name]

    def origin(self, index: int) -> tuple[str, int]:
        """Return file name and row of a conversation."""
        return self.file_names[int(self.files[index])], int(self.rows[index])

    def conversations(self, chosen: npt.NDArray[np.int64]) -> Iterator[Conversation]:
        """Yield the conversations of these indices, which ascend and were added with their bodies."""
        self._bodies.flush()
        for first in range(0, len(chosen), _CONVERSATIONS_AT_ONCE):
            begins, ends = self._ranges("body_end", chosen[first : first + _CONVERSATIONS_AT_ONCE])
            for begin, end in zip(begins, ends, strict=True):
                self._bodies.seek(begin)
                yield conversation_from_json(self._bodies.read(end - begin))

    def identities(self, chosen: npt.NDArray[np.int64]) -> list[bytes]:
        """Return the rows' own ids as UTF-8, in any order; empty where a row has none."""
        self._ids.flush()
        found = []
        for begin, end in zip(*self._ranges("id_end", chosen), strict=True):
            if begin < end:
                self._ids.seek(begin)
            found.append(self._ids.read(end - begin) if begin < end else b"")
        return found

    def _ranges(self, column: str, chosen: npt.NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Return where the bytes of these conversations begin and end."""
        ends = self._column(column)
        begins = np.where(chosen > 0, ends[np.maximum(chosen, 1) - 1], 0)
        return begins.tolist(), ends[chosen].tolist()

    def close(self) -> None:
        """Remove the scratch files."""
        self._bodies.close()
        self._ids.close()
        self._conversations.close()
        self._seen.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
