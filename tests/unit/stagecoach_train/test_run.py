"""The whole stage on one rank, in this process, with the real engine and a store in memory."""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagecoach.errors import AcceleratorError, ConfigError, DataError, InterruptedWithProgress, MissingInputError
from stagecoach.formats.checkpoint import CheckpointIndex
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.metrics_file import read_metrics
from stagecoach.outputs import Output, open_input
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.memory import MemoryStore
from stagecoach_train import signals
from stagecoach_train.attempts import Heartbeat
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.engine import Engine
from stagecoach_train.planning import refuse_uneven
from stagecoach_train.results import StepResult
from stagecoach_train.run import _keep_logs, check, run
from stagecoach_train.schedule import learning_rate
from stagecoach_train.signals import StopRequest
from tests.unit.stagecoach_train.tiny_inputs import SPEC, keeping_sigterm, tiny_inputs

TRAINED = "trained/tiny-0123456789abcdef/"
RECIPE: dict[str, Any] = {
    "steps": 6,
    "packs_per_step": 2,
    "lr": 1e-2,
    "min_lr": 1e-3,
    "compute_dtype": "fp32",
    "save_every_steps": 2,
    "evaluate_every_steps": 3,
}


@pytest.fixture(autouse=True)
def sigterm_comes_back() -> Iterator[None]:
    with keeping_sigterm():
        yield


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({**RECIPE, **values})


def train(store: MemoryStore, folder: Path, **values: Any) -> Manifest:
    """Run the stage and commit what it handed over."""
    inputs = tiny_inputs(store, folder)
    output = Output(store, TRAINED, folder / "output")
    run(config(**values), inputs, output, store)
    output.commit(task="train", key="0123456789abcdef", name="tiny", output_version=1)
    manifest = read_manifest(store, TRAINED)
    assert manifest is not None
    return manifest


class TestWholeStage:
    """Breaks if export could not find or read what was trained."""

    def test_hands_over_the_last_and_the_best_checkpoint_and_the_metrics(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        manifest = train(store, tmp_path)
        summary = manifest.summary
        assert (summary["last"], summary["steps"]) == (6, 6)
        assert summary["last_loss"] < summary["first_loss"]
        assert summary["best"] in summary["iterations"]
        assert summary["heldout_last"]["num_targets"] == 63
        names = {name.split("/")[0] for name in manifest.objects}
        assert names == {"metrics", "iter_0000006", f"iter_{summary['best']:07d}"}
        trained = open_input(store, TRAINED, tmp_path / "read")
        index = CheckpointIndex.from_bytes(trained.read_bytes("iter_0000006/index.json"))
        assert index.spec == SPEC
        assert all(trained.path(f"iter_0000006/{file}").exists() for file in index.files)
        assert index.kinds("layers.1.mlp.down.weight") == ("weight", "exp_avg", "exp_avg_sq")

    def test_the_same_recipe_gives_the_same_bits(self, tmp_path: Path) -> None:
        digests = [
            train(MemoryStore(name), tmp_path / name).objects["iter_0000006/rank-00000.safetensors"].sha256
            for name in ("a", "b")
        ]
        assert digests[0] == digests[1]

    def test_a_resumed_run_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        whole = train(store, tmp_path, keep_last=9)
        store.delete([TRAINED + "manifest.json"])
        for later in ("iter_0000004", "iter_0000006"):
            store.delete([info.key for info in store.list(TRAINED + later)])
        again = train(store, tmp_path, keep_last=9)
        name = "iter_0000006/rank-00000.safetensors"
        assert again.objects[name].path.startswith(f"{TRAINED}iter_0000006/attempt-0002/")
        assert again.objects[name].sha256 == whole.objects[name].sha256

    def test_a_skipped_step_stays_skipped_for_the_optimizer_of_a_resumed_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Adam's bias correction counts updates, not steps."""
        train_step = Engine.train_step

        def overflowing_second_step(engine: Engine, *arguments: Any) -> StepResult:
            if arguments[-1] != learning_rate(config(), 1, 6):
                return train_step(engine, *arguments)
            forward_backward = engine.pipeline.forward_backward
            with monkeypatch.context() as patch:
                patch.setattr(engine.pipeline, "forward_backward", lambda batches: forward_backward(batches) + math.inf)
                return train_step(engine, *arguments)

        monkeypatch.setattr(Engine, "train_step", overflowing_second_step)
        store = MemoryStore("run")
        whole = train(store, tmp_path, keep_last=9)
        assert whole.summary["skipped_steps"] == [2]
        store.delete([TRAINED + "manifest.json"])
        for later in ("iter_0000004", "iter_0000006"):
            store.delete([info.key for info in store.list(TRAINED + later)])
        again = train(store, tmp_path, keep_last=9)
        name = "iter_0000006/rank-00000.safetensors"
        assert "attempt-0002" in again.objects[name].path
        assert again.objects[name].sha256 == whole.objects[name].sha256

    def test_how_long_a_start_took_is_recorded(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        store = MemoryStore("run")
        train(store, tmp_path)
        (start,) = [record for record in read_metrics(store, TRAINED) if record["kind"] == "start"]
        assert 0 < start["load_seconds"] <= start["ready_seconds"] < 60
        assert "after the attempt was taken" in caplog.text

    def test_a_budget_stops_and_the_next_attempt_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        whole = train(MemoryStore("whole"), tmp_path / "whole")
        store = MemoryStore("cut")
        with pytest.raises(InterruptedWithProgress, match=r"the wall-clock budget of 1e-06 s is used up"):
            train(store, tmp_path / "cut", wall_clock_budget_seconds=1e-6)
        again = train(store, tmp_path / "again")
        name = "iter_0000006/rank-00000.safetensors"
        assert again.objects[name].sha256 == whole.objects[name].sha256

    @pytest.mark.parametrize(
        ("limit", "reason"),
        [("budget", "the wall-clock budget of 500 s is used up"), ("deadline", "ARGO_DEADLINE is near")],
    )
    def test_a_limit_in_the_middle_saves_and_the_next_attempt_goes_on_from_there(
        self, limit: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In the third step an hour goes by."""
        caplog.set_level(logging.INFO)
        whole = train(MemoryStore("whole"), tmp_path / "whole")
        late_seconds = 0.0
        steps, train_step = itertools.count(1), Engine.train_step

        def slow_step(engine: Engine, *arguments: Any) -> StepResult:
            nonlocal late_seconds
            late_seconds += 3600.0 if next(steps) == 3 else 0.0
            return train_step(engine, *arguments)

        def late() -> float:
            return time.monotonic() + late_seconds

        store = MemoryStore("cut")
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "train_step", slow_step)
            patch.setattr(signals, "time", SimpleNamespace(monotonic=late, time=time.time))
            if limit == "deadline":
                patch.setenv("ARGO_DEADLINE", datetime.fromtimestamp(time.time() + 500, UTC).isoformat())
            with pytest.raises(InterruptedWithProgress) as stopped:
                train(store, tmp_path / "cut", wall_clock_budget_seconds=500 if limit == "budget" else None)
        assert str(stopped.value).startswith(f"train: stopped after step 3 of 6 ({reason}), everything is saved")
        again = train(store, tmp_path / "again")
        assert "attempt 2, from iteration 3" in caplog.text
        name = "iter_0000006/rank-00000.safetensors"
        assert again.objects[name].sha256 == whole.objects[name].sha256

    def test_signals_that_end_attempts_before_their_ranks_start_use_up_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node that is taken away while inputs are copied, three times in a row."""
        stops: list[StopRequest] = []

        class Recorded(StopRequest):
            def __init__(self, **limits: Any) -> None:
                super().__init__(**limits)
                stops.append(self)

        def ended_here(*arguments: Any) -> None:
            stops[-1].last_word()  # what the thread that hears the signal calls before it ends the process
            raise RuntimeError("the process would be gone")

        store = MemoryStore("run")
        with monkeypatch.context() as patch:
            patch.setattr("stagecoach_train.run.StopRequest", Recorded)
            patch.setattr("stagecoach_train.run.check_inputs", ended_here)
            for number in (1, 2, 3):
                with pytest.raises(RuntimeError, match="would be gone"):
                    train(store, tmp_path)
                assert b'"state": "interrupted"' in store.get(f"{TRAINED}heartbeat-{number:04d}.json")

    def test_a_signal_that_ends_an_attempt_whose_heartbeat_hangs_is_said_in_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One request without an answer in a store that answers all others."""
        hanging, gone = threading.Event(), threading.Event()

        class Slow(MemoryStore):
            def put(self, key: str, data: bytes, *, content_type: str = "") -> None:
                if b'"beat": 2' in data:
                    hanging.set()
                    gone.wait(30)
                super().put(key, data)

        def ended_here(stop: StopRequest) -> None:
            assert hanging.wait(5)
            said: list[bytes] = []
            stop._end_process(lambda code: said.append(store.get(f"{TRAINED}heartbeat-0001.json")))
            gone.set()
            assert b'"state": "interrupted"' in said[0]
            raise RuntimeError("the process would be gone")

        store, stop = Slow("run"), StopRequest()
        monkeypatch.setattr("stagecoach_train.run.StopRequest", lambda **limits: stop)
        monkeypatch.setattr("stagecoach_train.run.Heartbeat", partial(Heartbeat, beat_seconds=0.01))
        monkeypatch.setattr("stagecoach_train.run.check_inputs", lambda *arguments: ended_here(stop))
        with pytest.raises(RuntimeError, match="would be gone"):
            train(store, tmp_path)

    def test_without_a_held_out_split_nothing_is_the_best(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        inputs = tiny_inputs(store, tmp_path, num_heldout=0)
        output = Output(store, TRAINED, tmp_path / "output")
        run(config(), inputs, output, store)
        assert (output.summary["best"], output.summary["heldout_last"]) == (None, None)


class TestRefused:
    """Breaks if a training starts that cannot end well."""

    def test_a_step_without_targets(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        inputs = tiny_inputs(store, tmp_path, untrained=True)
        with pytest.raises(DataError, match=r"step 1 of 6 \(packs \d, \d\) has no trained target"):
            run(config(), inputs, Output(store, TRAINED, tmp_path / "output"), store)

    def test_a_tokenizer_that_is_larger_than_the_model(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        inputs = tiny_inputs(store, tmp_path, vocab_size=300)
        with pytest.raises(DataError, match="tokenizer with 300 tokens, the model has embeddings for 256"):
            run(config(), inputs, Output(store, TRAINED, tmp_path / "output"), store)

    def test_prompts_without_a_tokenizer(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        with pytest.raises(MissingInputError, match="expected an input 'tokenizer', got packed, shards"):
            train(store, tmp_path, prompts=("Hello",))

    def test_a_damaged_input(self, tmp_path: Path) -> None:
        store = MemoryStore("run")
        inputs = tiny_inputs(store, tmp_path)
        entry = inputs["packed"].entry("train/tokens.bin")
        store.put(entry.path, bytes(entry.size_bytes))
        with pytest.raises(DataError, match=r"tokens\.bin: expected .* bytes with sha256"):
            run(config(), inputs, Output(store, TRAINED, tmp_path / "output"), store)

    @pytest.mark.parametrize(("started", "layout"), [(2, {}), (1, {"data_parallel": 2})])
    def test_another_number_of_ranks_than_the_layout_has(
        self, started: int, layout: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wrong ``--nproc-per-node`` takes no attempt."""
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(started))
        store = MemoryStore("run")
        with pytest.raises(
            ConfigError, match=rf"WORLD_SIZE is {started}: expected {3 - started}, as train\.layout has"
        ):
            train(store, tmp_path, layout=layout)
        assert not list(store.list(TRAINED))

    def test_gpus_that_are_not_there(self, tmp_path: Path) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("GPU present")
        store = MemoryStore("run")
        with pytest.raises(AcceleratorError, match=r"rank 0 of 1: train\.gpus is 1: expected a GPU for local rank 0"):
            train(store, tmp_path, gpus=1)


def test_logs_that_find_no_room_do_not_replace_how_the_training_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rank-00000.log").write_text("a line")
    _keep_logs(tmp_path, Path("/dev/full"))
    assert "logs of ranks are missing in /dev/full" in caplog.text


class TestCheck:
    """Breaks if ``--check`` says yes to what the run refuses."""

    def test_says_what_will_happen(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        check(config(), tiny_inputs(MemoryStore("run"), tmp_path))
        assert "8 packs, 2 a step, 6 steps (1.5 epochs); each data-parallel rank: 2 micro-batches" in caplog.text

    def test_shows_the_memory_plan_also_where_nothing_limits_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        check(config(), tiny_inputs(MemoryStore("run"), tmp_path))
        for item in ("weights", "gradients", "moments", "activations", "total"):
            assert re.search(rf"^{item} .*\d\.\d\d$", caplog.text, re.MULTILINE), item
        assert "usable" not in caplog.text

    def test_warns_of_a_warmup_that_never_ends(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        inputs = tiny_inputs(MemoryStore("run"), tmp_path)
        check(config(warmup_steps=5), inputs)
        assert "warning" not in caplog.text
        check(config(warmup_steps=6), inputs)
        assert "warning: the warm-up of 6 steps is not shorter than the training of 6" in caplog.text

    def test_shows_the_memory_plan_of_a_gpu(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        check(config(gpus=1, gpu_memory_gib=40), tiny_inputs(MemoryStore("run"), tmp_path))
        assert "activations" in caplog.text
        assert "usable" in caplog.text

    def test_asks_for_the_memory_that_it_cannot_see(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"train\.gpu_memory_gib: expected the memory of one GPU"):
            check(config(gpus=1), tiny_inputs(MemoryStore("run"), tmp_path))

    def test_refuses_tokens_that_ranks_cannot_share(self) -> None:
        shared = config(layout={"tensor_parallel": 2})
        with pytest.raises(ConfigError, match="a multiple of 2 tokens, got 33"):
            refuse_uneven(shared, MicroBatchShape(33, 4), 1)
        refuse_uneven(shared, MicroBatchShape(34, 4), 1)
        refuse_uneven(config(layout={"tensor_parallel": 2, "sequence_parallel": False}), MicroBatchShape(33, 4), 1)

    def test_refuses_micro_batches_that_do_not_go_round(self) -> None:
        """On GPUs the memory plan chooses how many packs make one, so the recipe alone cannot be refused."""
        layout = {"pipeline_parallel": 2, "virtual_stages": 2}
        nine = config(packs_per_step=9, gpus=2, micro_batch_packs="auto", layout=layout)
        with pytest.raises(ConfigError, match="a number of micro-batches that 2 pipeline ranks divide"):
            refuse_uneven(nine, MicroBatchShape(32, 4), 3)
        refuse_uneven(nine, MicroBatchShape(32, 4), 5)  # 5 + 4 packs

    def test_refuses_what_the_run_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no trained target"):
            check(config(), tiny_inputs(MemoryStore("run"), tmp_path, untrained=True))
