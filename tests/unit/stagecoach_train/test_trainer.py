"""The loop on one rank with an engine made of numpy: resume, stop, evaluation, retention, hand-over of numbers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch._C._distributed_c10d import HashStore

from stagecoach.errors import DataError, InterruptedWithProgress, StoreUnavailable
from stagecoach.formats.checkpoint import CheckpointReader
from stagecoach.formats.tensor_file import TensorFile
from stagecoach.manifest import read_manifest
from stagecoach.metrics_file import read_metrics
from stagecoach.paths import checkpoint_prefix
from stagecoach.progress import NO_PROGRESS, Progress
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.attempts import Fence
from stagecoach_train.batch import MicroBatch, MicroBatchShape
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.checkpointing import Retention, committed_checkpoints, find_newest_intact
from stagecoach_train.data import DataOrder
from stagecoach_train.evaluation import Evaluator, HeldoutDocuments
from stagecoach_train.feed import PackNumbers, StepFeed
from stagecoach_train.metrics import MetricsStream
from stagecoach_train.ranks import Ranks
from stagecoach_train.results import EvalResult
from stagecoach_train.signals import StopRequest
from stagecoach_train.throughput import flops
from stagecoach_train.train_state import TrainState
from stagecoach_train.trainer import Hardware, Parts, Trainer
from tests.unit.stagecoach_train.loop_fakes import SPEC, FakeEngine, FakeSplit

TRAINED = "trained/tiny-0123456789abcdef/"
SHAPE = MicroBatchShape(num_tokens=8, num_documents=4)


def config(**values: object) -> TrainConfig:
    """10 steps of 4 packs; saved and evaluated every 3."""
    given = {"steps": 10, "packs_per_step": 4, "save_every_steps": 3, "evaluate_every_steps": 3, **values}
    return TrainConfig.model_validate(given)


class OneRank:
    """One attempt of a training in memory; ``train`` may be called once."""

    def __init__(self, store: MemoryStore, scratch: Path, attempt: int = 1, engine: FakeEngine | None = None) -> None:
        self.store, self.scratch, self.attempt = store, scratch, attempt
        self.engine = engine or FakeEngine()
        self.stop = StopRequest()
        self.hardware = Hardware()
        self.progress = NO_PROGRESS
        self.interview: Any = None

    def train(self, settings: TrainConfig) -> TrainState:
        ranks = Ranks(0, 1, HashStore(), 10.0)
        packs, heldout = FakeSplit.numbered(5), FakeSplit.numbered(3)
        order = DataOrder.of(settings, packs.num_packs)
        numbers = PackNumbers(np.ones(5), np.full(5, 3), np.full(5, 5), np.full(5, 9))
        stored = find_newest_intact(self.store, TRAINED, self.scratch / "resume")
        state = TrainState() if stored is None else stored.state
        if stored is not None:
            self.load(stored.paths)
        parts = Parts(
            config=settings,
            spec=SPEC,
            order=order,
            feed=StepFeed(packs, numbers, order, SHAPE, micro_batch_packs=1, data_parallel=1, dp_rank=0),
            engine=self.engine,
            ranks=ranks,
            writer=CheckpointWriter(
                self.store,
                TRAINED,
                ranks,
                Fence(self.store, TRAINED, self.attempt),
                SPEC,
                Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best),
                None if stored is None else stored.ref,
                self.scratch / "checkpoints",
            ),
            evaluator=Evaluator(
                heldout,
                HeldoutDocuments([f"hash{i}" for i in range(6)], ["a", "b"] * 3),
                SHAPE,
                ranks,
                micro_batch_packs=1,
                data_parallel=1,
                dp_rank=0,
                reports=True,
            ),
            interview=self.interview,
            metrics=MetricsStream(self.store, TRAINED, self.attempt),
            stop=self.stop,
            progress=self.progress,
            hardware=self.hardware,
            attempt=self.attempt,
        )
        return Trainer(parts, state).run()

    def load(self, paths: Mapping[str, Path]) -> None:
        """What ``Engine.load_state`` does."""
        from stagecoach_train.sources import CheckpointSource

        source = CheckpointSource(lambda name: paths[name])
        self.engine.weight = float(source("final_norm.weight", "weight", (0, 1), None)[0])
        self.engine.num_updates = source.state.num_updates


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("trainer")


def iterations(store: MemoryStore) -> list[tuple[int, int]]:
    return [(ref.iteration, ref.attempt) for ref in committed_checkpoints(store, TRAINED)]


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


def stopping_at(step: int) -> Callable[[OneRank], None]:
    def arm(run: OneRank) -> None:
        run.engine.on_step = lambda now: run.stop.request("SIGTERM arrived") if now == step else None

    return arm


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


class TestFence:
    """Breaks if an attempt that was taken over still changes anything."""

    def test_a_higher_attempt_stops_this_one_before_its_commit(self, store: MemoryStore, tmp_path: Path) -> None:
        store.put_if_absent(TRAINED + "attempts/0002.json", json.dumps({}).encode())
        with pytest.raises(InterruptedWithProgress, match="attempt 2 has taken over from attempt 1"):
            OneRank(store, tmp_path).train(config())
        assert iterations(store) == []


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

    def test_retention_waits_for_a_store_that_is_away_for_a_moment(self, tmp_path: Path) -> None:
        class Away(MemoryStore):
            times = 2

            def delete(self, keys: Iterable[str]) -> None:
                if self.times:
                    self.times -= 1
                    raise StoreUnavailable(self.url, "iter_0000003/", "does not answer")
                super().delete(keys)

        store = Away("away")
        OneRank(store, tmp_path).train(config(keep_last=1, keep_best=False))
        assert iterations(store) == [(10, 1)]

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
