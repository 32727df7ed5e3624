"""Which packs make which step, and how a step is shared among ranks."""

from __future__ import annotations

import time

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.recipe.train import TrainConfig, micro_batches_per_rank
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.data import (
    DataOrder,
    deal,
    join_packs,
    permutation,
    refuse_untrained_steps,
    share_step,
)
from tests.unit.stagecoach_train.loop_fakes import pack_of


def order(num_packs: int = 5, **config: object) -> DataOrder:
    return DataOrder.of(TrainConfig.model_validate({"packs_per_step": 4, "seed": 7, **config}), num_packs)


class TestOrder:
    """Breaks if a resumed run, another machine or another numpy would see other packs."""

    def test_the_permutation_is_pinned(self) -> None:
        assert permutation(7, 0, 8).tolist() == [1, 4, 7, 2, 5, 6, 3, 0]
        assert permutation(7, 1, 8).tolist() == [7, 5, 2, 6, 1, 3, 4, 0]

    def test_epochs_are_joined_and_cut(self) -> None:
        whole = order(epochs=2.0)  # 10 packs in steps of 4: 4 + 4 + 2
        steps = [whole.packs_of_step(step) for step in range(whole.num_steps)]
        assert [len(step) for step in steps] == [4, 4, 2]
        joined = [pack for step in steps for pack in step]
        assert joined == [1, 4, 2, 3, 0, 2, 1, 3, 4, 0]  # every epoch in an order of its own

    def test_a_fractional_epoch_ends_early(self) -> None:
        assert order(epochs=2.6).total_packs == 13
        assert order(epochs=2.6).num_steps == 4
        assert order(epochs=2.5).total_packs == 13  # half a pack is a whole one
        assert order(num_packs=3_486_775, epochs=18.6).total_packs == 64_854_015

    def test_the_originals_mistral_recipe_without_its_extra_step(self) -> None:
        config = TrainConfig(epochs=5, packs_per_step=32)
        assert DataOrder.of(config, 4_833).num_steps == 756  # ceil(5 x 4,833 / 32); the original ran 760

    def test_steps_count_whole_steps(self) -> None:
        given = order(steps=3)
        assert (given.num_steps, given.total_packs) == (3, 12)
        assert len(given.packs_of_step(2)) == 4

    def test_an_empty_split_is_refused(self) -> None:
        with pytest.raises(DataError, match="at least one training pack, got 0"):
            order(num_packs=0)

    def test_epochs_seen(self) -> None:
        assert [order(epochs=2.0).epoch_of_step(step) for step in range(4)] == [0.0, 0.8, 1.6, 2.0]


class TestSharing:
    """Breaks if packs are lost, doubled, or shared unevenly."""

    def test_dearest_first_to_the_cheapest(self) -> None:
        # 9 -> bin 0; 7 -> bin 1; 5 -> bin 1 (7 < 9); 4 -> bin 0
        assert deal([5, 9, 4, 7], num_bins=2, places=2) == [[1, 2], [3, 0]]

    def test_places_are_respected(self) -> None:
        assert deal([9, 1, 1, 1], num_bins=2, places=2) == [[0, 3], [1, 2]]

    @pytest.mark.parametrize(("data_parallel", "k"), [(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)])
    def test_any_layout_works_on_the_same_packs(self, data_parallel: int, k: int) -> None:
        costs = np.arange(20, dtype=np.float64) % 7
        count = micro_batches_per_rank(8, data_parallel, k)
        shared = share_step([3, 1, 19, 4, 6, 2, 0, 11], costs, data_parallel, k, count)
        assert [len(rank) for rank in shared] == [count] * data_parallel
        assert all(len(group) <= k for rank in shared for group in rank)
        assert sorted(p for rank in shared for group in rank for p in group) == [0, 1, 2, 3, 4, 6, 11, 19]

    def test_a_short_step_leaves_places_empty(self) -> None:
        assert share_step([5], np.ones(6), data_parallel=2, micro_batch_packs=1, num_micro_batches=2) == [
            [[5], []],
            [[], []],
        ]


class TestJoining:
    """Breaks if attention or targets could cross documents or packs."""

    shape = MicroBatchShape(num_tokens=16, num_documents=6)

    def test_two_packs_become_one_stream(self) -> None:
        batch = join_packs([pack_of([5, 6, 7], [8, 9]), pack_of([1, 2, 3, 4, 1, 2, 3, 4])], self.shape)
        # 3 + 2 | 8 | 3 of padding
        assert batch.cu_seqlens.tolist() == [0, 3, 5, 13, 16, 16, 16]
        assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 4, 1, 2, 3, 4, 0, 0, 0]
        assert batch.positions_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
        i = -100
        assert batch.targets_T.tolist() == [6, 7, i, 9, i, 2, 3, 4, 1, 2, 3, 4, i, i, i, i]
        assert batch.num_targets == 10

    def test_an_empty_place_is_untrained(self) -> None:
        batch = join_packs([pack_of([5] * 8)], self.shape)
        assert batch.cu_seqlens.tolist() == [0, 8, 16, 16, 16, 16, 16]
        assert batch.num_targets == 7

    def test_too_many_documents_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at most 16 tokens and 2 documents"):
            join_packs([pack_of([1, 2], [3, 4], [5, 6])], MicroBatchShape(16, 2))


class TestUntrainedSteps:
    """Breaks if a step whose loss is 0 / 0 could start."""

    def test_a_step_without_targets_is_named(self) -> None:
        one = order(num_packs=1, packs_per_step=1, steps=2)
        with pytest.raises(DataError, match=r"step 1 of 2 \(packs 0\) has no trained target"):
            refuse_untrained_steps(one, np.array([0]))

    def test_an_untrained_pack_beside_others_is_fine(self) -> None:
        refuse_untrained_steps(order(epochs=1.0, packs_per_step=5), np.array([0, 0, 0, 0, 3]))

    def test_a_training_that_is_meant_never_to_end_starts_at_once(self) -> None:
        endless = order(num_packs=5, packs_per_step=3, steps=10**15)  # one pack is never in all three places
        started = time.process_time()
        refuse_untrained_steps(endless, np.array([0, 3, 3, 3, 3]))
        assert time.process_time() - started < 10
