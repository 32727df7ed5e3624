"""What is known of a pack before its tokens are read, by hand; and which rank is handed which packs, step after step."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagecoach.formats.packed import PackedSplit
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.data import DataOrder
from stagecoach_train.feed import PackNumbers, StepFeed
from tests.unit.stagecoach_train.tiny_inputs import SPEC, tiny_inputs


def test_a_packs_cost_counts_attention_and_targets(tmp_path: Path) -> None:
    split = PackedSplit.open(tiny_inputs(MemoryStore("feed"), tmp_path)["packed"], "train")
    numbers = PackNumbers.of(split, SPEC)
    # The first pack: documents of 12 and 8 tokens, 12 of padding; a window of 8 keys.
    # 12 tokens see 1 + .. + 8 + 4 x 8 = 68 keys, 8 tokens 36; 11 + 7 targets.
    assert (numbers.num_tokens[0], numbers.num_keys[0], numbers.num_targets[0]) == (20, 68 + 36, 18)
    attention = 12 * 2 * 4 * 4 * (68 + 36)  # 2 layers, 4 heads of 4
    head = 6 * 256 * 16 * 18  # 256 tokens, width 16
    assert numbers.costs[0] == attention + head


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """Eight packs; pack n begins with token n."""
    return PackedSplit.open(tiny_inputs(MemoryStore("feed"), tmp_path)["packed"], "train")


def feed_of(split: PackedSplit, dp_rank: int, data_parallel: int) -> StepFeed:
    order = DataOrder.of(TrainConfig.model_validate({"epochs": 2, "packs_per_step": 3}), split.num_packs)
    shape = MicroBatchShape(32, 4)
    return StepFeed(
        split,
        PackNumbers.of(split, SPEC),
        order,
        shape,
        micro_batch_packs=1,
        data_parallel=data_parallel,
        dp_rank=dp_rank,
    )


@pytest.mark.parametrize("step", [0, 2, 5])  # the third step reaches into the second epoch, the last one is short
def test_ranks_share_the_packs_of_a_step_and_know_its_whole_numbers(step: int, split: PackedSplit) -> None:
    alone = feed_of(split, 0, 1).make(step)
    ranks = [feed_of(split, rank, 2).make(step) for rank in range(2)]
    first_tokens = sorted(int(batch.tokens_T[0]) for rank in ranks for batch in rank.micro_batches if batch is not None)
    assert first_tokens == sorted(alone.packs)
    assert len(alone.packs) == (1 if step == 5 else 3)
    for rank in ranks:
        assert rank.packs == alone.packs
        assert len(rank.micro_batches) == 2
        assert rank.num_targets == alone.num_targets == sum(b.num_targets for b in alone.micro_batches if b is not None)
        assert (rank.num_tokens, rank.num_keys) == (alone.num_tokens, alone.num_keys)


def test_the_step_that_is_asked_for_is_given_though_another_was_prepared(split: PackedSplit) -> None:
    feed = feed_of(split, 0, 1)
    try:
        for step in (0, 1, 4, 2, 5):
            data, _ = feed.get(step)
            assert (data.step, data.packs) == (step, feed.make(step).packs)
    finally:
        feed.close()
