"""Packing against a packer of ten plain lines, and the fill that it must reach."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.errors import DataError
from stagecoach_pack.packing import best_fit_decreasing, plan_packs


def plain_best_fit(lengths: list[int], capacity: int, max_documents: int) -> list[list[int]]:
    """The same rule, said in ten lines: longest first, into the fullest pack with room (the last used of equals)."""
    packs: list[list[int]] = []
    used: list[int] = []  # packs by the time of their last document, so that the last of equals is found first
    for document in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [
            pack
            for pack in used
            if sum(lengths[d] for d in packs[pack]) + lengths[document] <= capacity and len(packs[pack]) < max_documents
        ]
        pack = max(reversed(fitting), key=lambda p: sum(lengths[d] for d in packs[p]), default=len(packs))
        if pack == len(packs):
            packs.append([])
        else:
            used.remove(pack)
        packs[pack].append(document)
        used.append(pack)
    return packs


def as_packs(pack_of: npt.NDArray[np.uint32], lengths: list[int]) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [[d for d in order if pack_of[d] == pack] for pack in range(int(pack_of.max()) + 1)] if lengths else []


def test_the_picture_of_the_module() -> None:
    lengths = [7, 6, 4, 3, 2, 2, 1]
    packs = as_packs(best_fit_decreasing(np.array(lengths), 10, 1024), lengths)
    assert [[lengths[d] for d in pack] for pack in packs] == [[7, 3], [6, 4], [2, 2, 1]]


def test_a_pack_takes_no_more_documents_than_allowed() -> None:
    assert best_fit_decreasing(np.array([1] * 7), 10, 3).tolist() == [0, 0, 0, 1, 1, 1, 2]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 600), st.integers(1, 8))
def test_packs_are_those_of_the_plain_rule(lengths: list[int], capacity: int, max_documents: int) -> None:
    found = best_fit_decreasing(np.array(lengths, np.int64), capacity, max_documents)
    assert as_packs(found, lengths) == plain_best_fit(lengths, capacity, max_documents)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(50, 300), st.integers(1, 20), st.integers(0, 9)
)
def test_every_document_is_in_one_pack_and_no_pack_is_too_long(
    lengths: list[int], capacity: int, max_documents: int, seed: int
) -> None:
    order, counts = plan_packs(np.array(lengths), capacity, max_documents, seed)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert counts.sum() == len(lengths)
    assert 0 < counts.min() <= counts.max() <= max_documents
    for pack in np.split(order, np.cumsum(counts)[:-1]):
        assert sum(lengths[document] for document in pack) <= capacity


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    lengths = np.arange(1, 200)
    first, again, other = (plan_packs(lengths, 300, 16, seed) for seed in (1, 1, 2))
    assert first[0].tolist() == again[0].tolist()
    assert first[0].tolist() != other[0].tolist()
    assert sorted(first[1].tolist()) == sorted(again[1].tolist())


@pytest.mark.parametrize("length", [0, 11])
def test_a_length_outside_the_pack_is_refused(length: int) -> None:
    with pytest.raises(DataError, match="expected lengths from 1 to 10"):
        best_fit_decreasing(np.array([3, length]), 10, 4)


def test_nothing_gives_no_packs() -> None:
    order, counts = plan_packs(np.zeros(0, np.int64), 10, 4, 0)
    assert (order.tolist(), counts.tolist()) == ([], [])


@pytest.mark.parametrize(("capacity", "fill"), [(16_384, 0.999), (4_096, 0.999)])
def test_lognormal_documents_fill_the_packs(capacity: int, fill: float) -> None:
    draw = np.random.default_rng(0).lognormal(0.0, 1.0, 78_385)
    lengths = np.clip(draw / draw.mean() * 1010, 1, capacity).astype(np.int64)
    _, counts = plan_packs(lengths, capacity, 1024, 0)
    assert lengths.sum() / (len(counts) * capacity) >= fill


def test_documents_of_equal_length_are_mixed_before_they_are_packed() -> None:
    # 100 documents of 10 tokens, three a pack: without mixing a pack would hold neighbours, so one source each
    packs = []
    for seed in (0, 1):
        order, counts = plan_packs(np.full(100, 10), 30, 1024, seed)
        packs.append({frozenset(part.tolist()) for part in np.split(order, np.cumsum(counts)[:-1])})
    assert packs[0] != packs[1]
    assert sum(max(pack) - min(pack) > 10 for pack in packs[0]) > 20
