"""Which checkpoints stay, and which one is gone on from."""

from __future__ import annotations

import math

import pytest

from stagecoach.errors import InterruptedWithProgress
from stagecoach.paths import checkpoint_prefix
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.attempts import Fence
from stagecoach_train.checkpointing import Retention, delete_checkpoint
from stagecoach_train.train_state import CheckpointRef, HeldoutLoss, TrainState


def refs(*iterations: int, attempt: int = 1) -> list[CheckpointRef]:
    return [CheckpointRef(iteration, attempt) for iteration in iterations]


def state(**losses: float) -> TrainState:
    """``state(at10=2.0)``: held-out loss 2.0 after 10 steps."""
    found = {int(name[2:]): HeldoutLoss(loss, 0.0, 0.0, 1, {}) for name, loss in losses.items()}
    return TrainState(step=100, heldout=found)


class TestRetention:
    """Breaks if a checkpoint that somebody needs is deleted."""

    def test_the_newest_stay(self) -> None:
        assert Retention(2, None, False).to_delete(refs(10, 20, 30, 40), state(), None, 1) == refs(10, 20)

    def test_every_hundredth_stays(self) -> None:
        kept = Retention(1, 20, False)
        assert kept.to_delete(refs(10, 20, 30, 40, 50), state(), None, 1) == refs(10, 30)

    def test_the_best_stays(self) -> None:
        losses = state(at10=3.0, at20=1.0, at30=2.0, at25=0.5)  # nothing was saved after 25 steps
        assert Retention(1, None, True).to_delete(refs(10, 20, 30), losses, None, 1) == refs(10)

    def test_the_one_resumed_from_stays(self) -> None:
        assert Retention(1, None, False).to_delete(refs(10, 20, 30), state(), CheckpointRef(10, 1), 1) == refs(20)

    def test_the_one_just_committed_stays_below_damaged_ones(self) -> None:
        """After a resume from before them they count as newer, and no attempt can go on from them."""
        found, now = refs(10, 20, 30, 40, 50), TrainState(step=30)
        assert Retention(1, None, False).to_delete(found, now, None, 1) == refs(10, 20)

    def test_of_two_attempts_at_an_iteration_both_stay_and_both_go(self) -> None:
        """The older attempt may be handing over what it committed last: its output names that checkpoint."""
        both = [CheckpointRef(30, 1), CheckpointRef(30, 2)]
        assert Retention(1, None, False).to_delete(both, state(), None, 2) == []
        assert Retention(1, None, False).to_delete([*both, *refs(40, attempt=2)], state(), None, 2) == both

    @pytest.mark.parametrize("kept", [Retention(1, None, True), Retention(2, None, False), Retention(1, 10, False)])
    def test_a_damaged_one_that_was_not_saved_again_stays_for_nothing(self, kept: Retention) -> None:
        """Its iteration may have the lowest loss: the second attempt came past it, evaluated it, and saved elsewhere."""
        damaged, own = refs(10), refs(5, 15, attempt=2)
        losses = state(at5=2.0, at10=1.0, at15=3.0)
        assert kept.to_delete([*damaged, *own], losses, None, 2)[-1] == CheckpointRef(10, 1)
        assert CheckpointRef(5, 2) not in Retention(2, None, False).to_delete([*damaged, *own], losses, None, 2)
        assert kept.to_delete([*damaged, *own], TrainState(step=5), None, 2) == []


def test_nothing_of_a_finished_training_is_deleted() -> None:
    """Another attempt has committed the output; it may name the very checkpoint that this one would delete."""
    store = MemoryStore("m")
    prefix = checkpoint_prefix("trained/m-00ff/", 10, 1)
    store.put(prefix + "manifest.json", b"{}")
    fence = Fence(store, "trained/m-00ff/", 2)
    store.put("trained/m-00ff/manifest.json", b"{}")
    with pytest.raises(InterruptedWithProgress, match="another attempt has finished"):
        delete_checkpoint(store, "trained/m-00ff/", CheckpointRef(10, 1), fence)
    assert store.head(prefix + "manifest.json") is not None
    store.delete(["trained/m-00ff/manifest.json"])
    delete_checkpoint(store, "trained/m-00ff/", CheckpointRef(10, 1), fence)
    assert store.head(prefix + "manifest.json") is None


class TestState:
    """Breaks if a resumed training forgets something."""

    def test_it_survives_json(self) -> None:
        import json

        full = TrainState(
            step=7,
            num_updates=6,
            skipped_steps=[3],
            heldout={0: HeldoutLoss(1.5, 4.48, 0.25, 9, {"chat": 1.5})},
            answers={0: [{"prompt": "Hi", "answer": "Hello"}]},
        )
        assert TrainState.from_json(json.loads(json.dumps(full.to_json()))) == full

    @pytest.mark.parametrize(
        ("losses", "best"), [({"at5": 2.0, "at9": 2.0}, 5), ({"at5": math.nan, "at9": 2.0}, 9), ({}, None)]
    )
    def test_the_best_is_the_earliest_finite_lowest(self, losses: dict[str, float], best: int | None) -> None:
        assert state(**losses).best_step({5, 9}) == best
