"""How questions are cut out of packs and answers judged; the model itself is asked in tests/pipeline."""

from __future__ import annotations

import io

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach_workflows import answers
from stagecoach_workflows.answers import Answer, Question, compare, draw_questions, questions_of_pack, read_answers


class Pack:
    """Two documents of 6 and 4 tokens and two slots of padding; the second one has two answers."""

    tokens = np.array([1, 10, 11, 20, 21, 2, 1, 30, 12, 31, 0, 0], dtype=np.int32)
    trained = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0], dtype=bool)
    document_starts = np.array([0, 6, 10], dtype=np.int32)
    num_document_tokens = 10


class Split:
    """Two equal packs."""

    num_packs = 2

    def pack(self, index: int) -> Pack:
        return Pack()


def test_an_answer_is_a_run_of_trained_tokens_after_all_before_it() -> None:
    assert questions_of_pack(Pack()) == [
        Question(prompt_ids=[1, 10, 11], reference_ids=[20, 21, 2]),
        Question(prompt_ids=[1], reference_ids=[30]),
        Question(prompt_ids=[1, 30, 12], reference_ids=[31]),
    ]


def test_the_run_id_decides_which_are_drawn() -> None:
    one, again, other = (draw_questions(Split(), run, 3) for run in ("a", "a", "b"))  # type: ignore[arg-type]
    assert one == again
    assert len(one) == 3
    assert any(draw_questions(Split(), str(run), 3) != one for run in range(5))  # type: ignore[arg-type]
    assert len(other) == 3


def test_too_few_answers_are_an_error() -> None:
    with pytest.raises(DataError, match="at least 7 trained answers"):
        draw_questions(Split(), "a", 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generated", "share", "stopped"),
    [
        ([20, 21, 2], 1.0, True),
        ([20, 21, 22, 2], 2 / 3, True),
        ([20, 21, 2, 5, 5], 1.0, False),
        ([21, 20, 2], 1 / 3, True),
        ([], 0.0, False),
    ],
)
def test_tokens_are_compared_by_place(generated: list[int], share: float, stopped: bool) -> None:
    question = Question(prompt_ids=[1], reference_ids=[20, 21, 2])
    found_share, found_stopped = compare(question, generated, {2})
    assert found_share == pytest.approx(share)
    assert found_stopped is stopped


def test_a_good_answer_is_right_and_ends() -> None:
    def answer(share: float, stopped: bool) -> Answer:
        return Answer(prompt="p", reference="r", answer="a", share=share, stopped=stopped)

    assert answer(0.8, True).good
    assert not answer(0.79, True).good
    assert not answer(1.0, False).good


def test_answers_travel_as_lines_of_json() -> None:
    line = '{"prompt": "p", "reference": "r", "answer": "a\\n", "share": 1.0, "stopped": true}\n'
    assert read_answers(line) == [Answer(prompt="p", reference="r", answer="a\n", share=1.0, stopped=True)]


@pytest.mark.parametrize(("told", "code"), [("", 0), ("go\n", 78)])
def test_who_waits_ends_without_a_line_and_opens_nothing(
    told: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "load_transformers", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(told))
    assert answers.main(["--store", "ftp://x", "--run", "r", "--wait"]) == code
    assert ("ftp://x" in capsys.readouterr().err) is bool(told)
