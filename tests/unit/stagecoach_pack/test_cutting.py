"""Conversations longer than a pack, with the arithmetic beside each case."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach.formats.packed import CUT_BEFORE, CUT_BEHIND
from stagecoach.recipe.pack import TooLong
from stagecoach_pack.cutting import Cutter, Piece, TooLongError
from stagecoach_pack.labels import Labelled


def pieces(trained: str, capacity: int, rule: TooLong, *breaks: int, bos: int | None = None) -> list[Piece]:
    """Cut a conversation with ids 100, 101, ..; ``trained`` spells targets as ``#`` and all other tokens as ``.``."""
    talk = Labelled(
        np.arange(100, 100 + len(trained), dtype=np.int32),
        np.array([mark == "#" for mark in trained]),
        np.array(breaks, np.int64),
    )
    return Cutter(capacity, rule, bos).pieces(talk)


def shown(found: list[Piece]) -> list[tuple[list[int], str, int, int]]:
    marks = [(piece.ids.tolist(), "".join(".#"[bit] for bit in piece.trained.tolist())) for piece in found]
    return [(ids, bits, piece.skipped, piece.flags) for (ids, bits), piece in zip(marks, found, strict=True)]


def test_what_fits_is_left_whole() -> None:
    assert shown(pieces("..##", 4, "error")) == [([100, 101, 102, 103], "..##", 0, 0)]


def test_the_first_token_is_never_a_target() -> None:
    assert shown(pieces("##", 4, "error")) == [([100, 101], ".#", 0, 0)]


def test_truncating_keeps_the_first_pack_and_no_end_token() -> None:
    # the answer is tokens 2..6, its end token is 6; only 2..4 fit
    assert shown(pieces("..#####.", 5, "truncate")) == [([100, 101, 102, 103, 104], "..###", 0, CUT_BEHIND)]


def test_dropping_leaves_nothing() -> None:
    assert pieces("..##", 3, "drop") == []


def test_an_error_says_the_length() -> None:
    with pytest.raises(TooLongError, match=r"^expected at most pack\.pack_tokens = 3 tokens, got 4"):
        pieces("..##", 3, "error")


def test_splitting_cuts_before_a_message_where_that_fills_half_a_pack() -> None:
    # capacity 6, breaks before 4 and 9: 4 tokens fill more than half of 6; then 5 (4..8); then 2
    assert shown(pieces("..##...##.#", 6, "split", 4, 9)) == [
        ([100, 101, 102, 103], "..##", 0, CUT_BEHIND),
        ([104, 105, 106, 107, 108], "...##", 4, CUT_BEFORE | CUT_BEHIND),
        ([109, 110], ".#", 9, CUT_BEFORE),
    ]


def test_a_break_too_near_is_passed_over_and_the_cut_answer_has_no_end_token() -> None:
    # capacity 6, break before 2 only (a third of a pack): cut behind 6 tokens; the answer 3..8 loses its end token 8,
    # and token 6, the first of the second piece, is no target
    assert shown(pieces("...######.", 6, "split", 2)) == [
        ([100, 101, 102, 103, 104, 105], "...###", 0, CUT_BEHIND),
        ([106, 107, 108, 109], ".#..", 6, CUT_BEFORE),
    ]


def test_an_answer_that_is_cut_from_its_header_has_no_end_token() -> None:
    # capacity 6: the header 3..5 fills the first piece; the answer 6..8 stands behind the cut, without its prompt
    assert shown(pieces("......###.", 6, "split")) == [
        ([100, 101, 102, 103, 104, 105], "......", 0, CUT_BEHIND),
        ([106, 107, 108, 109], ".#..", 6, CUT_BEFORE),
    ]


def test_an_answer_that_is_cut_often_loses_its_end_token_alone() -> None:
    # capacity 5, BOS: cut before 5, 9, 13 and 17; the answer is 2..16, its end token 16; 5, 9 and 13 begin pieces
    found = pieces("..###############.", 5, "split", bos=1)
    assert ["".join(".#"[bit] for bit in piece.trained.tolist()) for piece in found] == [
        "..###",
        "..###",
        "..###",
        "..##.",
        "..",
    ]


def test_pieces_behind_the_first_begin_with_bos() -> None:
    # capacity 4: 4 tokens, then BOS and 3, then BOS and 1
    assert [ids for ids, *_ in shown(pieces("........", 4, "split", bos=1))] == [
        [100, 101, 102, 103],
        [1, 104, 105, 106],
        [1, 107],
    ]


def test_counts_say_what_was_done() -> None:
    cutter = Cutter(4, "truncate", None)
    talk = Labelled(np.arange(9, dtype=np.int32), np.ones(9, np.bool_), np.zeros(0, np.int64))
    cutter.pieces(talk)
    assert cutter.counts == {"too_long": 1, "tokens_dropped": 5}
