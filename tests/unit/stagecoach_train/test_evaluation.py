"""The held-out loss is the same however many copies of the model share the split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stagecoach.formats.packed import PackedSplit
from stagecoach.recipe.export import GateConfig
from stagecoach.releases import Evidence
from stagecoach.storage.memory import MemoryStore
from stagecoach_export.gate import judge
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.evaluation import Evaluation, Evaluator, HeldoutDocuments
from stagecoach_train.ranks import Ranks
from tests.unit.stagecoach_train.loop_fakes import FakeEngine, FakeSplit
from tests.unit.stagecoach_train.tiny_inputs import tiny_inputs

DOCUMENTS = HeldoutDocuments([f"hash{i}" for i in range(10)], ["code", "chat"] * 5)


class SumLater(Ranks):
    """Keeps what one rank contributes, so that a test can add up the ranks by hand."""

    def __init__(self) -> None:
        self.given: npt.NDArray[np.float64] | None = None

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        self.given = values
        return values


def evaluate(
    dp: int = 1,
    dp_rank: int = 0,
    k: int = 1,
    reports: bool = True,
    between: Callable[[], None] = lambda: None,
    heldout_loss: float = 1.0,
) -> tuple[Evaluation, npt.NDArray[np.float64]]:
    ranks = SumLater()
    evaluator = Evaluator(
        FakeSplit.numbered(5),
        DOCUMENTS,
        MicroBatchShape(8 * k, 4 * k),
        ranks,
        micro_batch_packs=k,
        data_parallel=dp,
        dp_rank=dp_rank,
        reports=reports,
    )
    found = evaluator.run(FakeEngine(heldout_loss=heldout_loss), between)
    assert ranks.given is not None
    return found, ranks.given


def test_each_document_has_its_own_numbers() -> None:
    found, _ = evaluate()
    assert found.num_targets.tolist() == [2, 1] * 5
    assert found.loss_sums.tolist() == [2.0, 1.0] * 5  # the fake's loss is 1 a target before any update
    assert (found.summary.loss, found.summary.num_targets) == (1.0, 15)
    assert found.summary.perplexity == pytest.approx(2.718281828)
    assert found.summary.per_source == {"chat": 1.0, "code": 1.0}  # 5 and 10 targets
    assert found.summary.accuracy == 10 / 15


@pytest.mark.parametrize(("dp", "k"), [(2, 1), (3, 1), (2, 2), (1, 3), (4, 2)])
def test_copies_of_the_model_share_the_split_without_gap_or_overlap(dp: int, k: int) -> None:
    total = sum(evaluate(dp, rank, k)[1] for rank in range(dp))
    assert np.array_equal(total, evaluate()[1])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_padding_between_packs_shifts_no_document(k: int, tmp_path: Path) -> None:
    """Breaks if a document reads its neighbour's numbers, as after every padded pack but the last of a micro-batch."""
    split = PackedSplit.open(tiny_inputs(MemoryStore("heldout"), tmp_path, num_heldout=5)["packed"], "heldout")
    assert all(split.packs["num_tokens"] < split.pack_tokens)
    documents = HeldoutDocuments.of(split)
    evaluator = Evaluator(
        split,
        documents,
        MicroBatchShape(split.pack_tokens * k, 4 * k),
        SumLater(),
        micro_batch_packs=k,
        data_parallel=1,
        dp_rank=0,
        reports=True,
    )
    found = evaluator.run(FakeEngine(), lambda: None)
    targets = [int(split.document_trained(number).sum()) for number in range(split.num_documents)]
    assert len(set(targets)) > 1
    assert found.num_targets.tolist() == targets
    assert found.loss_sums.tolist() == targets


def test_ranks_that_hold_the_same_copy_count_once() -> None:
    assert not evaluate(reports=False)[1].any()


def test_all_ranks_look_for_a_stop_equally_often() -> None:
    calls = [0, 0]
    for rank in (0, 1):

        def count(rank: int = rank) -> None:
            calls[rank] += 1

        evaluate(dp=2, dp_rank=rank, between=count)  # 5 packs on 2 copies: 3 turns, the last one half empty
    assert calls == [3, 3]


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_diverged_model_is_never_released(loss: float) -> None:
    """The gate gets what an evaluation records, where the loss is a number that JSON can say."""
    found, _ = evaluate(heldout_loss=loss)
    documents = zip(DOCUMENTS.hashes, found.loss_sums.tolist(), found.num_targets.tolist(), strict=True)
    candidate = Evidence(iteration=8, documents={name: (value, count) for name, value, count in documents})
    assert json.loads(candidate.model_dump_json())["documents"]["hash0"] == [1e9, 2]
    for released in (None, candidate):
        verdict = judge(GateConfig(min_common_documents=1), candidate, released)
        assert verdict.reasons == ("its held-out loss is not finite on 10 of 10 documents: its training diverged",)
