"""The gate: what it compares, on which documents, and how it says no."""

from __future__ import annotations

import pytest

from stagecoach.metrics_file import WORST_LOSS
from stagecoach.recipe.export import GateConfig
from stagecoach.releases import Evidence
from stagecoach_export.gate import judge

RELEASED = Evidence(iteration=8, documents={"a": (40.0, 20), "b": (30.0, 10), "c": (9.0, 5)})
BETTER = Evidence(iteration=8, documents={"a": (38.0, 20), "b": (31.0, 10), "d": (700.0, 5)})


def gate(**values: float) -> GateConfig:
    return GateConfig.model_validate({"min_common_documents": 2, **values})


def test_only_common_documents_count() -> None:
    verdict = judge(gate(max_loss_increase=0.0), BETTER, RELEASED)
    assert verdict.reasons == ()
    # (38 + 31) / 30 against (40 + 30) / 30
    assert (verdict.num_common_documents, verdict.candidate_loss, verdict.released_loss) == (2, 2.3, 70 / 30)


@pytest.mark.parametrize(("increase", "passes"), [(0.02, False), (0.04, True)])
def test_the_tolerance_is_in_nats_a_token(increase: float, passes: bool) -> None:
    """The other way round the loss is 0.0333 above."""
    assert (judge(gate(max_loss_increase=increase), RELEASED, BETTER).reasons == ()) is passes


def test_a_worse_candidate_is_told_both_losses() -> None:
    (reason,) = judge(gate(max_loss_increase=0.0), RELEASED, BETTER).reasons
    assert reason == "held-out loss 2.3333 is above the released 2.3000 by more than 0 on 2 common documents"


def test_too_few_common_documents_refuse_even_a_better_one() -> None:
    (reason,) = judge(gate(min_common_documents=3), BETTER, RELEASED).reasons
    assert reason == "expected at least 3 held-out documents in common with the released export, found 2 of 3"


def test_a_document_with_other_tokens_is_not_common() -> None:
    other = Evidence(iteration=8, documents={"a": (38.0, 20), "b": (31.0, 11)})
    assert judge(gate(min_common_documents=1), other, RELEASED).num_common_documents == 1


def test_the_first_candidate_needs_no_documents() -> None:
    verdict = judge(gate(), Evidence(iteration=8, documents={}), None)
    assert (verdict.reasons, verdict.num_common_documents, verdict.candidate_loss) == ((), None, None)


@pytest.mark.parametrize("loss", [float("inf"), float("nan"), WORST_LOSS])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    """Also where the released export has diverged as well."""
    broken = Evidence(iteration=8, documents={"a": (loss, 20), "b": (30.0, 10)})
    for released in (RELEASED, None, broken):
        verdict = judge(gate(), broken, released)
        assert verdict.reasons == ("its held-out loss is not finite on 1 of 2 documents: its training diverged",)
        assert verdict.numbers()["candidate_loss"] is None


def test_one_document_that_is_not_common_shows_that_a_candidate_diverged() -> None:
    documents = {**BETTER.documents, "e": (WORST_LOSS, 5)}
    assert len(judge(gate(), BETTER.model_copy(update={"documents": documents}), RELEASED).reasons) == 1


def test_a_finite_candidate_may_follow_a_diverged_release() -> None:
    broken = Evidence(iteration=8, documents={"a": (WORST_LOSS, 20), "b": (30.0, 10)})
    verdict = judge(gate(), BETTER, broken)
    assert (verdict.reasons, verdict.numbers()["released_loss"]) == ((), None)


@pytest.mark.parametrize(
    ("right", "share", "reasons"),
    [
        ([True, True, False], None, ()),
        ([True, True, False], 0.6, ()),
        ([True, False, False], 0.6, ("1 of 3 tasks answered right, expected a share of 0.6",)),
        (
            [],
            0.6,
            ("no answers to tasks were recorded at this iteration; give train.tasks before the training begins",),
        ),
    ],
)
def test_answers_count_where_a_share_is_asked_for(
    right: list[bool], share: float | None, reasons: tuple[str, ...]
) -> None:
    answers = tuple({"prompt": "?", "answer": "!", "expected": "!", "right": value} for value in right)
    candidate = BETTER.model_copy(update={"answers": (*answers, {"prompt": "no task", "answer": "!"})})
    config = GateConfig(min_right_share=share)
    assert judge(config, candidate, None).reasons == reasons
