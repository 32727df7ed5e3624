"""In which order one pipeline rank does its forward and backward passes: 1F1B, plain or interleaved, or zero-bubble.

The order by example:

    4 ranks, 1 stage each, 6 micro-batches; digits are forward, letters the backward of the same micro-batch (a = of 0)

      rank 0   0 1 2 3 . . . a 4 b 5 c . d . e . f        3 forwards ahead
      rank 1   . 0 1 2 . . a 3 b 4 c 5 d . e . f .        2
      rank 2   . . 0 1 . a 2 b 3 c 4 d 5 e . f . .        1
      rank 3   . . . 0 a 1 b 2 c 3 d 4 e 5 f . . .        0: forward and backward of each at once

    A rank holds activations of at most as many micro-batches as it is ahead plus one, however many there are.
    Interleaved, each rank holds several shorter stages (rank 0: layers 0-1 and 4-5, rank 1: 2-3 and 6-7) and the idle
    time at both ends shrinks by that factor (Narayanan et al. 2021, section 2.2).

    Zero-bubble cuts a backward pass in two: the half that the rank before waits for, and the weights' gradients (A = of
    micro-batch 0), which fill the gaps (schedule ZB-H1 of Qi et al. 2023). With all three passes equally long, of 4
    ranks and 6 micro-batches the first one idles 3 passes instead of 9:

      rank 0   0 1 2 3 . . a A 4 b B 5 c C d D e E f F
      rank 3   . . . 0 a 1 b 2 c 3 d A 4 e B 5 f C D E F

    Rank r does the weights' half r micro-batches late and keeps what that needs for so long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stagecoach.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Action:
    """One pass of one micro-batch through one of this rank's stages.

    Attributes:
        kind: Forward, backward, or the half of a backward pass that makes the weights' gradients.
        stage: Which of this rank's stages, in the order of their layers.
        micro_batch: Which micro-batch of the step.
    """

    kind: Literal["forward", "backward", "weights"]
    stage: int
    micro_batch: int

    @property
    def is_forward(self) -> bool:
        """It is a forward pass."""
        return self.kind == "forward"


def one_forward_one_backward(
    *, num_ranks: int, rank: int, num_micro_batches: int, stages_per_rank: int = 1
) -> list[Action]:
    """Return this rank's actions in order.

    Examples:
        Rank 2 of the picture:

        >>> actions = one_forward_one_backward(num_ranks=4, rank=2, num_micro_batches=6)
        >>> "".join("012345"[a.micro_batch] if a.is_forward else "abcdef"[a.micro_batch] for a in actions)
        '01a2b3c4d5ef'

    Raises:
        ConfigError: Interleaving needs a multiple of `num_ranks` micro-batches.
    """
    if stages_per_rank > 1 and num_micro_batches % num_ranks:
        raise ConfigError(
            f"the interleaved pipeline needs a number of micro-batches that {num_ranks} ranks divide, got "
            f"{num_micro_batches}; change packs_per_step or micro_batch_packs, or set virtual_stages to 1"
        )
    total = num_micro_batches * stages_per_rank
    ahead = num_ranks - rank - 1
    if stages_per_rank > 1:
        # Twice the distance, because a stage's backward comes only after its micro-batches went round all ranks.
        ahead = 2 * ahead + (stages_per_rank - 1) * num_ranks
    ahead = min(ahead, total)

    def action(position: int, is_forward: bool) -> Action:
        kind: Literal["forward", "backward"] = "forward" if is_forward else "backward"
        if stages_per_rank == 1:
            return Action(kind, 0, position)
        # Micro-batches go in groups of num_ranks through one stage after the other.
        group, within = divmod(position, num_ranks * stages_per_rank)
        stage, member = divmod(within, num_ranks)
        return Action(kind, stage if is_forward else stages_per_rank - 1 - stage, group * num_ranks + member)

    order = [action(position, True) for position in range(ahead)]
    for position in range(total - ahead):
        order += [action(ahead + position, True), action(position, False)]
    return order + [action(position, False) for position in range(total - ahead, total)]


def with_weights_apart(actions: Sequence[Action], *, behind: int) -> list[Action]:
    """Return the actions with the weights' half of each backward pass on its own, `behind` backward passes later.

    Examples:
        >>> actions = one_forward_one_backward(num_ranks=2, rank=1, num_micro_batches=3)
        >>> "".join({"forward": "012", "backward": "abc", "weights": "ABC"}[a.kind][a.micro_batch]
        ...         for a in with_weights_apart(actions, behind=1))
        '0a1bA2cBC'
    """
    order: list[Action] = []
    waiting: list[Action] = []
    for action in actions:
        order.append(action)
        if not action.is_forward:
            waiting.append(Action("weights", action.stage, action.micro_batch))
        if len(waiting) > behind:
            order.append(waiting.pop(0))
    return order + waiting
