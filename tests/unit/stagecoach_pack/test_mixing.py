"""Duplicates, held-out conversations, samples and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataSource
from stagecoach.recipe.pack import PackConfig
from stagecoach.recipe.source import EmbeddedSource
from stagecoach_pack.mixing import Selection, sample_rows, select


def digests(number: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (number, 16), np.uint8)


def chosen(hashes: npt.NDArray[np.uint8], *, source: dict[str, Any] | None = None, **pack: Any) -> Selection:
    sources = [DataSource(name="s", source=EmbeddedSource(), **(source or {}))]
    config = PackConfig(pack_tokens=64, too_long="drop", **pack)
    of_source = np.zeros(len(hashes), np.uint16)
    return select(sources, of_source, hashes, sides(hashes), np.zeros(len(hashes), np.bool_), config)


def sides(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Take the first half of each hash for the number that decides who is held out."""
    return np.ascontiguousarray(hashes).view(">u8")[:, 0].astype(np.uint64)


def test_duplicates_are_neither_trained_on_nor_held_out() -> None:
    source = DataSource(name="s", source=EmbeddedSource())
    config = PackConfig(pack_tokens=64, too_long="drop", heldout_share=0.5)
    is_duplicate = np.arange(100) % 3 == 1
    hashes = digests(100)
    found = select([source], np.zeros(100, np.uint16), hashes, sides(hashes), is_duplicate, config)
    assert found.duplicate.tolist() == is_duplicate.tolist()
    assert (found.copies + found.held_out).tolist() == (~is_duplicate).astype(int).tolist()
    assert 20 < found.held_out.sum() < 45


def test_a_share_is_held_out_by_hash() -> None:
    found = chosen(digests(10_000), heldout_share=0.05)
    assert 400 < found.held_out.sum() < 600
    assert (found.copies[found.held_out] == 0).all()


def test_a_conversation_stays_on_its_side_when_data_grows_or_is_reordered() -> None:
    hashes = digests(500)
    before = chosen(hashes, heldout_share=0.1).held_out
    grown = chosen(np.concatenate([digests(300, seed=1), hashes[::-1]]), heldout_share=0.1).held_out
    assert grown[300:][::-1].tolist() == before.tolist()


def test_a_number_of_conversations_is_held_out() -> None:
    found = chosen(digests(100), heldout_num=7)
    assert found.held_out.sum() == 7
    assert found.held_out.tolist() == chosen(digests(100), heldout_num=7).held_out.tolist()
    assert chosen(digests(100), heldout_num=0).held_out.sum() == 0


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"pack\.heldout_num: expected fewer than the 3 distinct conversations, got 3"):
        chosen(digests(3), heldout_num=3)
    with pytest.raises(DataError, match=r"expected conversations to train on, got none of 2 \(2 are held out\)"):
        chosen(np.zeros((2, 16), np.uint8) + np.arange(2, dtype=np.uint8)[:, None], heldout_share=0.99)


def test_a_sample_is_the_one_that_pandas_draws() -> None:
    import pandas as pd  # type: ignore[import-untyped]

    members = np.arange(1000, 1500)
    expected = pd.Series(members).sample(n=120, random_state=42, replace=False)
    assert sample_rows(members, 120, 42, "s").tolist() == sorted(expected.tolist())


def test_a_sample_larger_than_the_source_is_refused() -> None:
    with pytest.raises(
        DataError, match="data source s: rows: expected at most the 5 conversations that are there, got 6"
    ):
        chosen(digests(5), source={"rows": 6})


@pytest.mark.parametrize(
    ("weight", "low", "high"), [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.5, 0.45, 0.55), (1.25, 1.2, 1.3)]
)
def test_weights_are_copies(weight: float, low: float, high: float) -> None:
    found = chosen(digests(5000), source={"weight": weight})
    assert low <= found.copies.mean() <= high
    assert set(found.copies.tolist()) <= {int(weight), int(weight) + 1}


def test_rows_and_weights_of_one_source_leave_the_other_alone() -> None:
    sources = [
        DataSource(name="a", source=EmbeddedSource(), rows=3, weight=2),
        DataSource(name="b", source=EmbeddedSource()),
    ]
    config = PackConfig(pack_tokens=64, too_long="drop")
    of_source = np.array([0] * 5 + [1] * 4, np.uint16)
    found = select(sources, of_source, digests(9), sides(digests(9)), np.zeros(9, np.bool_), config)
    assert sorted(found.copies[:5].tolist()) == [0, 0, 2, 2, 2]
    assert found.copies[5:].tolist() == [1, 1, 1, 1]
