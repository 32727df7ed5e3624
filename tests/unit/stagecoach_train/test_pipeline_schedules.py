"""1F1B orders: by hand, and every order simulated with messages to see that nobody waits forever."""

from __future__ import annotations

import pytest

from stagecoach.errors import ConfigError
from stagecoach_train.parallel.schedules import Action, one_forward_one_backward, with_weights_apart

SIGNS = {"forward": "01234567", "backward": "abcdefgh", "weights": "ABCDEFGH"}


def written(actions: list[Action]) -> str:
    """Digits forward, letters backward, capitals the weights' half of it."""
    return "".join(SIGNS[action.kind][action.micro_batch] for action in actions)


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


def split(num_ranks: int, rank: int, num_micro_batches: int, stages: int = 1) -> list[Action]:
    order = one_forward_one_backward(
        num_ranks=num_ranks, rank=rank, num_micro_batches=num_micro_batches, stages_per_rank=stages
    )
    return with_weights_apart(order, behind=rank)


@pytest.mark.parametrize(
    ("rank", "order"),
    [(0, "0123aA4bB5cCdDeEfF"), (1, "012a3bA4cB5dCeDfEF"), (2, "01a2b3cA4dB5eCfDEF"), (3, "0a1b2c3dA4eB5fCDEF")],
)
def test_zero_bubble_four_ranks_six_micro_batches(rank: int, order: str) -> None:
    assert written(split(4, rank, 6)) == order


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_zero_bubble_makes_every_weight_gradient_once_after_its_backward_pass(rank: int, stages: int) -> None:
    order = split(4, rank, 8, stages)
    for action in order:
        if action.kind == "weights":
            before = order[: order.index(action)]
            assert Action("backward", action.stage, action.micro_batch) in before
    assert len(order) == len(set(order)) == 3 * 8 * stages


def idle_passes(orders: list[list[Action]], backward_passes: int) -> int:
    """Time in which the first rank does nothing, with a message of no duration; forward takes 1."""
    durations = {"forward": 1, "backward": backward_passes, "weights": 1}
    now, place = [0] * len(orders), [0] * len(orders)
    ready: dict[tuple[str, int, int], int] = {}
    while any(at < len(order) for at, order in zip(place, orders, strict=True)):
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                action = order[place[rank]]
                source = {"forward": rank - 1, "backward": rank + 1}.get(action.kind, -1)
                needs = (action.kind, source, action.micro_batch)
                if 0 <= source < len(orders) and needs not in ready:
                    break
                now[rank] = max(now[rank], ready.get(needs, 0)) + durations[action.kind]
                ready[action.kind, rank, action.micro_batch] = now[rank]
                place[rank] += 1
    return max(now) - sum(durations[action.kind] for action in orders[0])


def test_zero_bubble_idles_a_third() -> None:
    plain = [one_forward_one_backward(num_ranks=4, rank=rank, num_micro_batches=6) for rank in range(4)]
    assert idle_passes(plain, backward_passes=2) == 9
    assert idle_passes([split(4, rank, 6) for rank in range(4)], backward_passes=1) == 3
