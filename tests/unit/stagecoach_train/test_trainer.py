"""The loop on one rank with an engine made of numpy: resume, stop, evaluation, retention, hand-over of numbers."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from stagecoach.errors import InterruptedWithProgress
from stagecoach.formats.checkpoint import CheckpointReader
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.metrics_file import read_metrics
from stagecoach.paths import checkpoint_prefix
from stagecoach.progress import Progress
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.batch import MicroBatch
from stagecoach_train.checkpointing import find_newest_intact
from stagecoach_train.results import EvalResult
from stagecoach_train.throughput import flops
from stagecoach_train.trainer import Hardware
from tests.unit.stagecoach_train.loop_fakes import SPEC, FakeEngine
from tests.unit.stagecoach_train.one_rank import TRAINED, OneRank, config, iterations, stopping_at


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("trainer")


class TestWholeRun:
    """Breaks if a run does not end with what the recipe asks for."""

    def test_saves_at_the_cadence_and_at_the_end(self, store: MemoryStore, tmp_path: Path) -> None:
        state = OneRank(store, tmp_path).train(config(keep_last=9))
        assert iterations(store) == [(3, 1), (6, 1), (9, 1), (10, 1)]
        assert (state.step, state.num_updates, state.targets) == (10, 10, 10 * 4 * 3)
        assert store.get(TRAINED + "latest_checkpointed_iteration.txt") == b"10\n"

    def test_evaluates_at_start_cadence_and_end(self, store: MemoryStore, tmp_path: Path) -> None:
        state = OneRank(store, tmp_path).train(config())
        # 3 packs x (2 + 1) targets; the fake's loss is 1 / (1 + updates)
        assert {step: (found.num_targets, found.loss) for step, found in state.heldout.items()} == {
            0: (9, 1.0),
            3: (9, 0.25),
            6: (9, pytest.approx(1 / 7)),
            9: (9, pytest.approx(0.1)),
            10: (9, pytest.approx(1 / 11)),
        }

    def test_every_document_is_in_the_metrics(self, store: MemoryStore, tmp_path: Path) -> None:
        OneRank(store, tmp_path).train(config())
        first = next(r for r in read_metrics(store, TRAINED) if r["kind"] == "evaluation")
        assert first["documents"] == [[f"hash{i}", 2.0 - i % 2, 2 - i % 2] for i in range(6)]
        assert first["per_source"] == {"a": 1.0, "b": 1.0}

    def test_keeps_the_newest_two_and_the_best(self, store: MemoryStore, tmp_path: Path) -> None:
        OneRank(store, tmp_path).train(config())
        assert iterations(store) == [(9, 1), (10, 1)]

    @pytest.mark.parametrize(
        ("every", "losses", "stop_after", "asked"),
        [
            # never again as good as at the start, of which there is no checkpoint: 3 and 6 were the best of theirs
            (3, {0: 1.0, 3: 1.2, 6: 1.1, 9: 1.3, 10: 1.4}, None, [0, 3, 6, 10]),
            # better steps than 3 are not saved
            (1, {2: 0.1, 3: 1.5, 4: 0.2}, None, [0, 3, 10]),
            # the stop saves step 4; the next attempt asks
            (1, {2: 0.1, 3: 1.5, 4: 0.2}, 4, [0, 3, 4, 10]),
        ],
    )
    def test_asks_where_a_checkpoint_is_the_best_so_far(
        self,
        store: MemoryStore,
        tmp_path: Path,
        every: int,
        losses: dict[int, float],
        stop_after: int | None,
        asked: list[int],
    ) -> None:
        class Curve(FakeEngine):
            def evaluate(self, batch: MicroBatch) -> EvalResult:
                self.heldout_loss = losses.get(self.num_updates, 9.0) * (1 + self.num_updates)
                return super().evaluate(batch)

        def attempt(number: int) -> OneRank:
            rank = OneRank(store, tmp_path / str(number), number, engine=Curve())
            rank.interview = SimpleNamespace(run=lambda engine, between: [{"prompt": "p", "answer": "a"}])
            return rank

        settings = config(evaluate_every_steps=every)
        if stop_after is not None:
            first = attempt(1)
            stopping_at(stop_after)(first)
            with pytest.raises(InterruptedWithProgress):
                first.train(settings)
        state = attempt(2).train(settings)
        assert sorted(state.answers) == asked
        assert state.best_step({iteration for iteration, _ in iterations(store)}) == asked[-2]

    def test_the_memory_plan_is_compared_with_the_highest_use(
        self, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        run = OneRank(store, tmp_path)
        run.hardware = Hardware(memory_gib=lambda: 30.0, planned_gib=31.5)
        state = run.train(config())
        expected = {"planned_gib": 31.5, "measured_gib": 30.0, "off_by": 0.05, "micro_batches": 4}
        assert state.memory == expected
        (record,) = [r for r in read_metrics(store, TRAINED) if r["kind"] == "memory"]
        assert record["step"] == 10
        assert expected.items() <= record.items()
        assert "31.50 GiB planned, 30.00 GiB measured (off by +5.0 %)" in caplog.text
        stored = find_newest_intact(store, TRAINED, tmp_path / "read")
        assert stored is not None
        assert stored.state.memory == expected  # what the stage's summary is made from

    def test_every_step_is_a_record_a_line_and_progress(
        self, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        run = OneRank(store, tmp_path, engine=FakeEngine(on_step=lambda step: time.sleep(0.02)))
        run.hardware = Hardware(peak_flops=1e9, memory_gib=lambda: 1.5)
        run.progress = Progress(tmp_path / "progress")
        run.train(config(warmup_steps=2, lr=1e-3))
        steps = [r for r in read_metrics(store, TRAINED) if r["kind"] == "step"]
        assert [r["step"] for r in steps] == list(range(1, 11))
        first = steps[0]
        # 4 packs of 5 tokens, 3 of them targets, 9 pairs of query and key
        plain = {"loss": 1.0, "lr": 5e-4, "grad_norm": 1.0, "tokens": 20, "targets": 12, "memory_gib": 1.5}
        assert plain.items() <= first.items()
        assert first["skipped"] is False
        assert 0 <= first["data_wait_seconds"] <= first["seconds"]
        assert first["tokens_per_second"] == pytest.approx(20 / first["seconds"], rel=1e-3)
        assert first["targets_per_second"] == pytest.approx(12 / first["seconds"], rel=1e-3)
        assert first["mfu"] == pytest.approx(flops(SPEC, 20, 36) / first["seconds"] / 1e9, rel=1e-2)
        line = r"step 1/10  loss 1\.0000  lr 5\.00e-04  grad norm 1\.000  \S+ targets/s  \S+ tokens/s  MFU \S+  memory 1\.5 GiB"
        assert re.search(line + r"  data wait \d+ ms", caplog.text)
        assert (tmp_path / "progress").read_text() == "1000/1000\n"

    def test_training_goes_on_while_a_checkpoint_is_uploaded(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The upload of step 3 ends only when step 6 has begun."""
        caplog.set_level("INFO")
        step_6 = threading.Event()

        class Slow(MemoryStore):
            def put_file(self, key: str, path: Path) -> None:
                if not step_6.wait(timeout=20):
                    raise OSError("the training waits for the upload")
                super().put_file(key, path)

        store = Slow("slow")
        engine = FakeEngine(on_step=lambda step: step_6.set() if step == 6 else None)
        OneRank(store, tmp_path, engine=engine).train(config(keep_last=9))
        assert iterations(store) == [(3, 1), (6, 1), (9, 1), (10, 1)]
        saved = [r for r in read_metrics(store, TRAINED) if r["kind"] == "checkpoint"]
        assert [r["iteration"] for r in saved] == [3, 6, 9, 10]
        size = store.head(f"{checkpoint_prefix(TRAINED, 3, 1)}rank-00000.safetensors")
        assert size is not None
        assert saved[0]["size_bytes"] == size.size_bytes
        assert saved[0]["stall_seconds"] < saved[0]["total_seconds"]
        assert re.search(r"checkpoint of step 3: \S+ MB a rank, training stood still for \S+ s, committed", caplog.text)

    def test_a_checkpoint_is_readable_by_rectangle(self, store: MemoryStore, tmp_path: Path) -> None:
        run = OneRank(store, tmp_path)
        run.train(config())
        stored = find_newest_intact(store, TRAINED, tmp_path / "read")
        assert stored is not None
        from stagecoach_train.sources import CheckpointSource

        source = CheckpointSource(lambda name: stored.paths[name])
        assert isinstance(source._reader, CheckpointReader)
        assert source("head.weight", "weight", (3, 5), (0, 2)).tolist() == [[pytest.approx(run.engine.weight)] * 2] * 2
        with pytest.raises(KeyError, match="exp_avg"):
            source("head.weight", "exp_avg", (0, 1), (0, 1))
        assert (
            TensorFile.open(stored.paths["rank-00000.safetensors"]).dtype("weight/final_norm.weight/0-8") == "float32"
        )


class TestInterrupted:
    """Breaks if a stopped run loses work, or ends with other numbers than an undisturbed one."""

    @pytest.mark.parametrize("step", [1, 3, 4, 9, 10])
    def test_resumes_with_the_same_numbers(self, tmp_path: Path, step: int) -> None:
        whole = OneRank(MemoryStore("whole"), tmp_path / "whole")
        expected = whole.train(config())
        store = MemoryStore("cut")
        first = OneRank(store, tmp_path / "first")
        stopping_at(step)(first)
        with pytest.raises(InterruptedWithProgress, match=rf"stopped after step {step} of 10 \(SIGTERM arrived\)"):
            first.train(config())
        second = OneRank(store, tmp_path / "second", attempt=2)
        state = second.train(config())
        assert first.engine.seen + second.engine.seen == whole.engine.seen
        assert second.engine.weight == pytest.approx(whole.engine.weight, rel=1e-6)
        assert {**state.to_json(), "train_seconds": 0} == {**expected.to_json(), "train_seconds": 0}

    def test_a_stop_in_the_first_evaluation_has_nothing_to_save(self, store: MemoryStore, tmp_path: Path) -> None:
        run = OneRank(store, tmp_path)
        run.stop.request("SIGTERM arrived")
        with pytest.raises(InterruptedWithProgress, match="stopped after step 0"):
            run.train(config())
        assert iterations(store) == []

    def test_a_finished_training_has_nothing_left_to_do(self, store: MemoryStore, tmp_path: Path) -> None:
        OneRank(store, tmp_path / "1").train(config())
        again = OneRank(store, tmp_path / "2", attempt=2)
        assert again.train(config()).step == 10
        assert again.engine.seen == []
        assert iterations(store) == [(9, 1), (10, 1)]

    def test_a_damaged_newest_checkpoint_is_passed_over(
        self, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        OneRank(store, tmp_path / "1").train(config())
        key = TRAINED + "iter_0000010/attempt-0001/rank-00000.safetensors"
        damaged = bytearray(store.get(key))
        damaged[-1] ^= 1
        store.put(key, bytes(damaged))
        again = OneRank(store, tmp_path / "2", attempt=2)
        again.train(config())
        assert len(again.engine.seen) == 1
        assert iterations(store)[-1] == (10, 2)
        assert "checkpoint of iteration 10 (attempt 1) is damaged and passed over" in caplog.text

    def test_below_a_damaged_checkpoint_every_attempt_goes_on_where_the_last_one_stopped(
        self, store: MemoryStore, tmp_path: Path
    ) -> None:
        first = OneRank(store, tmp_path / "1")
        stopping_at(9)(first)
        with pytest.raises(InterruptedWithProgress):
            first.train(config(keep_best=False))
        key = TRAINED + "iter_0000009/attempt-0001/rank-00000.safetensors"
        store.put(key, bytes(len(store.get(key))))
        for attempt, step in ((2, 7), (3, 8)):
            later = OneRank(store, tmp_path / str(attempt), attempt)
            stopping_at(1)(later)
            with pytest.raises(InterruptedWithProgress, match=f"stopped after step {step}"):
                later.train(config(keep_last=1, keep_best=False))
        assert iterations(store) == [(7, 2), (8, 3), (9, 1)]

    def test_the_one_resumed_from_is_never_deleted(self, store: MemoryStore, tmp_path: Path) -> None:
        first = OneRank(store, tmp_path / "1")
        stopping_at(4)(first)
        with pytest.raises(InterruptedWithProgress):
            first.train(config(keep_last=1, keep_best=False))
        OneRank(store, tmp_path / "2", attempt=2).train(config(keep_last=1, keep_best=False))
        assert iterations(store) == [(4, 1), (10, 2)]
