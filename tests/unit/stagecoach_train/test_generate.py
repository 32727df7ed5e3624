"""Questions and answers: what is asked, when an answer counts as stopped, when as right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.recipe.train import AnswerTask, TrainConfig
from stagecoach_train.generate import Interview


class Letters:
    """A tokenizer of letters: ids are code points, 0 ends an answer."""

    stop_ids = (0,)

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        assert [message["role"] for message in messages] == ["user"]
        return [ord(letter) for letter in messages[0]["content"]]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(token) for token in ids if token)


class Echo:
    """Says the prompt again and stops if there is room for it."""

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        return [*prompt_ids, stop_ids[0]][:max_new_tokens]


def interview(config: TrainConfig) -> Interview:
    return Interview(cast(ChatTokenizer, Letters()), config)


def test_prompts_and_tasks_are_asked_in_order() -> None:
    tasks = (AnswerTask(prompt="Paris", expected="aris"), AnswerTask(prompt="Rome", expected="Paris"))
    config = TrainConfig(prompts=("Hi",), tasks=tasks, answer_max_tokens=5)
    calls: list[None] = []
    records = interview(config).run(Echo(), lambda: calls.append(None))
    assert records == [
        {"prompt": "Hi", "answer": "Hi", "num_tokens": 3, "stopped": True},
        # five letters fill the answer before it could stop
        {"prompt": "Paris", "answer": "Paris", "num_tokens": 5, "stopped": False, "expected": "aris", "right": True},
        {"prompt": "Rome", "answer": "Rome", "num_tokens": 5, "stopped": True, "expected": "Paris", "right": False},
    ]
    assert len(calls) == 3
