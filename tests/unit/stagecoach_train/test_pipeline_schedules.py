"""1F1B orders: by hand, and every order simulated with messages to see that nobody waits forever."""

from __future__ import annotations

import pytest

from stagecoach.errors import ConfigError
from stagecoach_train.parallel.schedules import Action, one_forward_one_backward


def written(actions: list[Action]) -> str:
    """Digits forward, letters backward."""
    return "".join("01234567"[a.micro_batch] if a.is_forward else "abcdefgh"[a.micro_batch] for a in actions)


@pytest.mark.parametrize(
    ("rank", "order"), [(0, "0123a4b5cdef"), (1, "012a3b4c5def"), (2, "01a2b3c4d5ef"), (3, "0a1b2c3d4e5f")]
)
def test_four_ranks_six_micro_batches(rank: int, order: str) -> None:
    assert written(one_forward_one_backward(num_ranks=4, rank=rank, num_micro_batches=6)) == order


def test_fewer_micro_batches_than_ranks() -> None:
    assert written(one_forward_one_backward(num_ranks=4, rank=0, num_micro_batches=2)) == "01ab"


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_every_rank_finishes_and_messages_arrive_in_the_order_they_are_taken(
    num_ranks: int, stages: int, rounds: int
) -> None:
    num_micro_batches = num_ranks * rounds
    todo = [
        one_forward_one_backward(
            num_ranks=num_ranks, rank=rank, num_micro_batches=num_micro_batches, stages_per_rank=stages
        )
        for rank in range(num_ranks)
    ]
    last_stage = num_ranks * stages - 1
    queues: dict[tuple[str, int], list[tuple[int, int]]] = {}
    done: set[tuple[bool, int, int]] = set()
    place = [0] * num_ranks
    moved = True
    while moved:
        moved = False
        for rank in range(num_ranks):
            while place[rank] < len(todo[rank]):
                action = todo[rank][place[rank]]
                stage, micro_batch = action.stage * num_ranks + rank, action.micro_batch
                kind = "forward" if action.is_forward else "backward"
                first = stage == (0 if action.is_forward else last_stage)
                if not first:
                    queue = queues.get((kind, rank), [])
                    if not queue:
                        break
                    assert queue.pop(0) == (stage, micro_batch)
                if not action.is_forward:
                    assert (True, stage, micro_batch) in done
                done.add((action.is_forward, stage, micro_batch))
                neighbour = stage + (1 if action.is_forward else -1)
                if 0 <= neighbour <= last_stage:
                    queues.setdefault((kind, neighbour % num_ranks), []).append((neighbour, micro_batch))
                place[rank] += 1
                moved = True
    assert len(done) == 2 * num_micro_batches * (last_stage + 1)


def test_a_rank_never_holds_more_than_it_is_ahead_plus_one() -> None:
    for rank in range(4):
        alive = most = 0
        for action in one_forward_one_backward(num_ranks=4, rank=rank, num_micro_batches=32):
            alive += 1 if action.is_forward else -1
            most = max(most, alive)
        assert most == 4 - rank


def test_interleaving_refuses_a_number_of_micro_batches_that_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="that 2 ranks divide, got 3"):
        one_forward_one_backward(num_ranks=2, rank=0, num_micro_batches=3, stages_per_rank=2)
