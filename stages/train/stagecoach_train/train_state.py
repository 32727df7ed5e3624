"""Everything a training knows beside its tensors: it lies in each checkpoint, and the step number is the whole data
state.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, order=True, slots=True)
class CheckpointRef:
    """A committed checkpoint; a higher attempt counts more than a lower one of the same iteration."""

    iteration: int
    attempt: int


@dataclass(slots=True)
class HeldoutLoss:
    """What one evaluation found, in short; the per-document numbers are in the metrics stream.

    Attributes:
        loss: Mean cross entropy over all held-out targets, nats; 1e9 where it is not finite.
        perplexity: exp(loss); the largest float where that overflows.
        accuracy: Share of targets that the greedy choice gets right.
        num_targets: Held-out targets.
        per_source: Source name -> mean cross entropy of its targets.
    """

    loss: float
    perplexity: float
    accuracy: float
    num_targets: int
    per_source: dict[str, float]


@dataclass(slots=True)
class TrainState:
    """What a resumed training needs to go on as if nothing had happened.

    Attributes:
        step: Steps done; the next one has this number, counted from 0.
        num_updates: Steps whose update was applied.
        skipped_steps: Steps, counted from 1, whose gradient was not finite.
        tokens: Document tokens seen, without padding.
        targets: Trained targets seen.
        train_seconds: Seconds spent in steps, over all attempts that led here.
        first_loss: Mean loss of the first step.
        last_loss: Mean loss of the latest step.
        heldout: Steps done -> what the held-out evaluation found then.
        answers: Steps done -> answers to the recipe's prompts and tasks.
        memory: Planned and highest measured memory of the fullest rank, GiB, once the last step is done on GPUs.
    """

    step: int = 0
    num_updates: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    train_seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    heldout: dict[int, HeldoutLoss] = field(default_factory=dict)
    answers: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    memory: dict[str, float] | None = None

    def best_step(self, among: set[int]) -> int | None:
        """Return which of these steps has the lowest held-out loss, the earlier of two equal ones; None without any."""
        known = sorted(step for step in among if step in self.heldout and math.isfinite(self.heldout[step].loss))
        return min(known, key=lambda step: (self.heldout[step].loss, step), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what ``to_json`` returned, also after a trip through JSON, which makes every key a text."""
        heldout = {int(step): HeldoutLoss(**found) for step, found in values["heldout"].items()}
        answers = {int(step): found for step, found in values["answers"].items()}
        return cls(**{**values, "heldout": heldout, "answers": answers})
