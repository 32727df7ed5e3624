"""Cuts conversations that are longer than a pack, as the recipe asks, so that no cut answer is taught where to end.

capacity 6, breaks before tokens 4 and 9:   a a a a | b b b b b | c c
split                                       [a a a a] [b b b b b] [c c]      at a break that fills at least half a pack
truncate                                    [a a a a b b]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stagecoach.formats.packed import CUT_BEFORE, CUT_BEHIND
from stagecoach.recipe.pack import TooLong
from stagecoach_pack.labels import Labelled


@dataclass(slots=True)
class Piece:
    """One document: a whole conversation or a piece of one.

    Attributes:
        ids: int32 [n].
        trained: bool [n]; the first is False.
        skipped: Tokens of the conversation before this piece.
        flags: CUT_BEFORE and CUT_BEHIND of the packed format.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    skipped: int = 0
    flags: int = 0


class TooLongError(Exception):
    """A conversation is too long; whoever knows its origin puts it before the sentence."""


class Cutter:
    """Applies one rule and counts what it did."""

    def __init__(self, capacity: int, too_long: TooLong, bos_id: int | None) -> None:
        """Cut to ``capacity`` tokens; pieces behind the first begin with ``bos_id`` where there is one."""
        self._capacity = capacity
        self._rule: TooLong = too_long
        self._bos_id = bos_id
        self.counts: Counter[str] = Counter()

    def pieces(self, talk: Labelled) -> list[Piece]:
        """Return the documents that one conversation becomes; none if it is dropped.

        Raises:
            TooLongError: It is too long and the rule is ``error``.
        """
        trained = talk.trained.copy()
        trained[:1] = False
        if len(talk.ids) <= self._capacity:
            return [Piece(talk.ids, trained)]
        self.counts["too_long"] += 1
        if self._rule == "error":
            raise TooLongError(
                f"expected at most pack.pack_tokens = {self._capacity} tokens, got {len(talk.ids)};"
                " raise it, or set pack.too_long to split, truncate or drop"
            )
        if self._rule == "drop":
            self.counts["tokens_dropped"] += len(talk.ids)
            return []
        if self._rule == "truncate":
            self.counts["tokens_dropped"] += len(talk.ids) - self._capacity
            return [Piece(talk.ids[: self._capacity], trained[: self._capacity], 0, CUT_BEHIND)]
        return self._split(talk.ids, trained, talk.breaks)

    def _split(
        self, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_], breaks: npt.NDArray[np.int64]
    ) -> list[Piece]:
        pieces: list[Piece] = []
        uncut = trained.copy()
        prefix = np.zeros(0, np.int32)
        at = 0
        while at < len(ids):
            room = self._capacity - len(prefix)
            end = len(ids) if len(ids) - at <= room else self._cut_behind(at, room, breaks)
            if end < len(ids):
                _untrain_end_of_cut_turn(trained, uncut, end)
            piece_trained = np.concatenate([np.zeros(len(prefix), np.bool_), trained[at:end]])
            piece_trained[: len(prefix) + 1] = False
            flags = (CUT_BEFORE if at else 0) | (CUT_BEHIND if end < len(ids) else 0)
            pieces.append(Piece(np.concatenate([prefix, ids[at:end]]), piece_trained, at, flags))
            at = end
            if self._bos_id is not None:
                prefix = np.array([self._bos_id], np.int32)
        self.counts["pieces"] += len(pieces)
        return pieces

    def _cut_behind(self, at: int, room: int, breaks: npt.NDArray[np.int64]) -> int:
        """Return where the piece that begins at ``at`` ends: a break that leaves it at least half full, else its last
        slot.
        """
        fitting = breaks[(breaks >= at + (room + 1) // 2) & (breaks <= at + room)]
        return int(fitting[-1]) if len(fitting) else at + room


def _untrain_end_of_cut_turn(trained: npt.NDArray[np.bool_], uncut: npt.NDArray[np.bool_], cut: int) -> None:
    """If the cut parts a trained turn from its beginning or its header, leave the token that ends it untrained.

    Args:
        trained: Targets, bool [n]; changed here.
        uncut: What they were before any cut: a turn that is cut twice still ends where it did.
        cut: Index of the first token behind the cut.
    """
    if not uncut[cut]:
        return
    behind = np.flatnonzero(~uncut[cut:])
    last = cut + int(behind[0]) - 1 if len(behind) else len(uncut) - 1
    trained[last] = False
