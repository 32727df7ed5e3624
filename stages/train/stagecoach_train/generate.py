"""Greedy answers to the recipe's prompts and tasks, so that a training can be judged by what the model says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.recipe.train import AnswerTask, TrainConfig


class Answers(Protocol):
    """The part of the engine that is needed here."""

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Return the greedy continuation, the stop token included if it was reached."""


class Interview:
    """Asks the recipe's questions."""

    def __init__(self, tokenizer: ChatTokenizer, config: TrainConfig) -> None:
        """Ask what ``prompts`` and ``tasks`` of the recipe say."""
        self._tokenizer = tokenizer
        self._max_tokens = config.answer_max_tokens
        self._tasks = [*(AnswerTask(prompt=prompt, expected="") for prompt in config.prompts), *config.tasks]

    def run(self, engine: Answers, between: Callable[[], None]) -> list[dict[str, Any]]:
        """Return one record a question: prompt, answer, whether it stopped by itself and (tasks only) was right.

        Args:
            engine: What answers; every rank calls it with the same prompts.
            between: Called before each question, on every rank equally often; raises to stop.
        """
        stop_ids = self._tokenizer.stop_ids
        records = []
        for task in self._tasks:
            between()
            prompt_ids = self._tokenizer.prompt_ids([{"role": "user", "content": task.prompt}])
            ids = engine.greedy(prompt_ids, self._max_tokens, stop_ids)
            stopped = bool(ids) and ids[-1] in stop_ids
            answer = self._tokenizer.decode(ids, skip_special_tokens=True)
            record: dict[str, Any] = {
                "prompt": task.prompt,
                "answer": answer,
                "num_tokens": len(ids),
                "stopped": stopped,
            }
            if task.expected:
                record |= {"expected": task.expected, "right": task.expected in answer}
            records.append(record)
        return records
