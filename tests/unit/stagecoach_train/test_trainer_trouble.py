"""The loop on one rank where something goes wrong: another attempt, gradients that are not finite, a store that is away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from stagecoach.errors import DataError, InterruptedWithProgress, StoreUnavailable
from stagecoach.manifest import read_manifest
from stagecoach.metrics_file import read_metrics
from stagecoach.paths import checkpoint_prefix
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.train_state import TrainState
from tests.unit.stagecoach_train.loop_fakes import FakeEngine
from tests.unit.stagecoach_train.one_rank import TRAINED, OneRank, config, iterations, stopping_at


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("trainer")


class TestFence:
    """Breaks if an attempt that was taken over still changes anything."""

    def test_a_higher_attempt_stops_this_one_before_its_commit(self, store: MemoryStore, tmp_path: Path) -> None:
        store.put_if_absent(TRAINED + "attempts/0002.json", json.dumps({}).encode())
        with pytest.raises(InterruptedWithProgress, match="attempt 2 has taken over from attempt 1"):
            OneRank(store, tmp_path).train(config())
        assert iterations(store) == []


class TestDamage:
    """Breaks if the output could name a checkpoint that nobody can read."""

    def test_a_damaged_checkpoint_that_was_not_saved_again_is_not_the_best(
        self, store: MemoryStore, tmp_path: Path
    ) -> None:
        """A stop saved after 6 steps, which no cadence does; the next attempt finds the lowest loss there."""
        settings = config(save_every_steps=5, evaluate_every_steps=2, keep_last=1)
        first = OneRank(store, tmp_path / "1")
        stopping_at(6)(first)
        with pytest.raises(InterruptedWithProgress):
            first.train(settings)
        store.put(f"{TRAINED}iter_0000006/attempt-0001/rank-00000.safetensors", b"damaged")
        second = OneRank(store, tmp_path / "2", attempt=2)

        def overfit(step: int) -> None:
            second.engine.heldout_loss = 1.0 if step <= 6 else 9.0

        second.engine.on_step = overfit
        state = second.train(settings)
        assert state.best_step({6, 10}) == 6
        assert iterations(store) == [(10, 2)]


class TestTrouble:
    """Breaks if trouble is swallowed."""

    def test_a_step_that_is_not_finite_is_skipped_and_counted(self, store: MemoryStore, tmp_path: Path) -> None:
        state = OneRank(store, tmp_path, engine=FakeEngine(not_finite_at=frozenset({2}))).train(config())
        assert (state.skipped_steps, state.num_updates) == ([2], 9)
        record = next(r for r in read_metrics(store, TRAINED) if r["kind"] == "step" and r["step"] == 2)
        assert (record["skipped"], record["loss"]) == (True, None)

    def test_too_many_of_them_name_all_packs_of_each(
        self, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = FakeEngine(not_finite_at=frozenset({1, 2}))
        with pytest.raises(DataError) as refused:
            OneRank(store, tmp_path, engine=engine).train(config(packs_per_step=12, non_finite_step_budget=1))
        first, second = [3, 1, 4, 2, 0, 3, 2, 1, 4, 0, 3, 4], [0, 2, 1, 3, 0, 1, 2, 4, 4, 2, 3, 0]
        assert f"in step 2 (packs {str(second)[1:-1]}); look at these conversations" in str(refused.value)
        assert f"step 1 skipped: its gradient is not finite (packs {str(first)[1:-1]})" in caplog.text
        assert [r["packs"] for r in read_metrics(store, TRAINED) if r["kind"] == "step"] == [first, second]

    def test_of_a_very_large_step_64_packs_are_named_and_the_record_has_the_rest(
        self, store: MemoryStore, tmp_path: Path
    ) -> None:
        engine = FakeEngine(not_finite_at=frozenset({2}))
        where = r"and 2 more, all in metrics/attempt-0001-\*\.jsonl of the output"
        with pytest.raises(DataError, match=rf"in step 2 \(packs (\d, ){{63}}\d {where}\); look at these"):
            OneRank(store, tmp_path, engine=engine).train(config(packs_per_step=66, non_finite_step_budget=0))
        first, second = (r for r in read_metrics(store, TRAINED) if r["kind"] == "step")
        assert "packs" not in first
        assert len(second["packs"]) == 66

    @pytest.mark.parametrize("loss", [float("nan"), float("inf")])
    def test_a_heldout_loss_that_is_not_finite_survives_every_record(
        self, store: MemoryStore, tmp_path: Path, loss: float
    ) -> None:
        state = OneRank(store, tmp_path / "1", engine=FakeEngine(heldout_loss=loss)).train(config())
        assert {found.loss for found in state.heldout.values()} == {1e9}
        assert state.heldout[10].per_source == {"a": 1e9, "b": 1e9}
        manifest = read_manifest(store, checkpoint_prefix(TRAINED, 10, 1))
        assert manifest is not None
        assert TrainState.from_json(manifest.summary) == state
        lines = [line for info in store.list(TRAINED + "metrics/") for line in store.get(info.key).splitlines()]
        assert not [line for line in lines if b"NaN" in line or b"Infinity" in line]

    def test_an_error_while_writing_ends_the_run(self, tmp_path: Path) -> None:
        class Full(MemoryStore):
            def put_file(self, key: str, path: Path) -> None:
                raise OSError(28, "No space left on device", str(path))

        with pytest.raises(OSError, match="No space left"):
            OneRank(Full("full"), tmp_path).train(config())

    def test_a_store_that_is_away_for_a_moment_is_waited_for(self, tmp_path: Path) -> None:
        class Away(MemoryStore):
            times = 2

            def put_file(self, key: str, path: Path) -> None:
                if self.times:
                    self.times -= 1
                    raise StoreUnavailable(self.url, key, "does not answer")
                super().put_file(key, path)

        store = Away("away")
        OneRank(store, tmp_path).train(config(save_every_steps=None))
        assert iterations(store) == [(10, 1)]

    @pytest.mark.parametrize("what", ["iter_0000003/", "latest_checkpointed_iteration.txt"])
    def test_a_stop_waits_for_nothing_that_follows_its_commit(self, what: str, tmp_path: Path) -> None:
        """A pod is killed long before the patience with old checkpoints, or with the tracker, is at its end."""

        class Away(MemoryStore):
            def refuse(self, key: str) -> None:
                if what in key and run.stop.reason is not None:
                    raise StoreUnavailable(self.url, key, "does not answer")

            def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
                if "iter_" not in key:  # checkpoints are waited for
                    self.refuse(key)
                super().put(key, data)

            def delete(self, keys: Iterable[str]) -> None:
                for key in keys:
                    self.refuse(key)
                super().delete(keys)

        run = OneRank(Away("away"), tmp_path)
        stopping_at(4)(run)
        started_seconds = time.monotonic()
        with pytest.raises(InterruptedWithProgress, match="stopped after step 4"):
            run.train(config(keep_last=1, keep_best=False))
        assert time.monotonic() - started_seconds < 20
        assert iterations(run.store)[-1] == (4, 1)

    def test_old_checkpoints_that_could_not_be_deleted_end_no_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The next retention catches up, and nobody waits for it: with patience two checkpoints would take ten minutes."""

        class Away(MemoryStore):
            def delete(self, keys: Iterable[str]) -> None:
                if (9, 1) not in iterations(self):
                    raise StoreUnavailable(self.url, "iter_0000003/", "does not answer")
                super().delete(keys)

        store = Away("away")
        started_seconds = time.monotonic()
        OneRank(store, tmp_path).train(config(keep_last=1, keep_best=False))
        assert time.monotonic() - started_seconds < 20
        assert iterations(store) == [(10, 1)]
        assert "the checkpoint of step 6 is committed; what follows is left to the next" in caplog.text

    @pytest.mark.parametrize("stopped", [False, True])
    def test_the_last_metrics_wait_for_the_store_but_a_stop_does_not(self, stopped: bool, tmp_path: Path) -> None:
        """Once a stop has saved everything, what is left is the record of the checkpoint: not worth another code."""

        class Away(MemoryStore):
            times = 2

            def put_if_absent(self, key: str, data: bytes, *, content_type: str = "") -> bool:
                if "/metrics/" in key and self.times and iterations(self):
                    self.times -= 1
                    raise StoreUnavailable(self.url, key, "does not answer")
                return super().put_if_absent(key, data)

        store = Away("away")
        run = OneRank(store, tmp_path)
        if stopped:
            stopping_at(4)(run)
            with pytest.raises(InterruptedWithProgress, match="stopped after step 4"):
                run.train(config(save_every_steps=None))
            assert store.times == 1
        else:
            run.train(config(save_every_steps=None))
            assert list(read_metrics(store, TRAINED))[-1]["kind"] == "end"
