"""TensorBoard's events read back by its own reader, and W&B's files by the real package in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagecoach.errors import ConfigError, InterruptedWithProgress, StoreUnavailable
from stagecoach.metrics_file import read_metrics
from stagecoach.outputs import Output
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.memory import MemoryStore
from stagecoach_train import signals
from stagecoach_train.engine import Engine
from stagecoach_train.metrics import MetricsStream
from stagecoach_train.results import StepResult
from stagecoach_train.run import run
from stagecoach_train.sinks import open_sinks
from tests.unit.stagecoach_train.tiny_inputs import keeping_sigterm, tiny_inputs

TRAINED = "trained/tiny-0123456789abcdef/"
DRAW = """
import logging, sys
from pathlib import Path
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.local import LocalStore
from stagecoach_train.sinks import open_sinks
logging.basicConfig()
config = TrainConfig(wandb_project="chat", wandb_offline=sys.argv[2] == "offline")
store = LocalStore(Path(sys.argv[1]) / "store")
sinks = open_sinks(config, Path(sys.argv[1]), None, store, "trained/tiny-0123456789abcdef/", 1)
for sink in sinks:
    sink.write({"kind": "step", "step": 1, "loss": 2.0})
    sink.write({"kind": "step", "step": 2, "loss": 1.5})
for sink in sinks:
    sink.close()
"""


@pytest.fixture(autouse=True)
def sigterm_comes_back() -> Iterator[None]:
    with keeping_sigterm():
        yield


def test_tensorboards_own_reader_finds_every_number_of_every_attempt_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that they are written to goes with the stage; the first attempt's budget ends in its first step."""
    reader = importlib.import_module("tensorboard.backend.event_processing.event_multiplexer")
    store = MemoryStore("curves")
    inputs = tiny_inputs(store, tmp_path)

    def train(attempt: int, **values: Any) -> None:
        config = TrainConfig.model_validate({"steps": 3, "packs_per_step": 2, "compute_dtype": "fp32", **values})
        run(config, inputs, Output(store, TRAINED, tmp_path / f"output-{attempt}"), store)
        shutil.rmtree(tmp_path / f"output-{attempt}")

    late_seconds, train_step = 0.0, Engine.train_step

    def slow_step(engine: Engine, *arguments: Any) -> StepResult:
        nonlocal late_seconds
        late_seconds = 3600.0
        return train_step(engine, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", slow_step)
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late_seconds, time=time.time)
        patch.setattr(signals, "time", clock)
        with pytest.raises(InterruptedWithProgress, match="stopped after step 1 of 3"):
            train(1, tensorboard=True, wall_clock_budget_seconds=500)
    train(2, tensorboard=True)
    curves = list(store.list(f"{TRAINED}curves/"))
    for info in curves:
        file = tmp_path / "read" / info.key.removeprefix(f"{TRAINED}curves/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.get(info.key))
    events = reader.EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "read"))
    events.Reload()
    steps = {name: [event.step for event in events.Scalars(name, "step/loss")] for name in events.Runs()}
    assert steps == {"attempt-0001/tensorboard": [1], "attempt-0002/tensorboard": [2, 3]}
    told = {r["step"]: r["loss"] for r in read_metrics(store, TRAINED) if r["kind"] == "step"}
    drawn = [event.value for name in sorted(steps) for event in events.Scalars(name, "step/loss")]
    assert drawn == pytest.approx([told[step] for step in (1, 2, 3)])
    assert {"evaluation/per_source/other", "checkpoint/size_bytes"} <= set(
        events.Runs()["attempt-0002/tensorboard"]["scalars"]
    )


@pytest.mark.parametrize("away", [False, True])
def test_curves_that_cannot_be_stored_do_not_end_the_training(
    away: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor are they tried where the metrics before them could not be stored, or twice."""
    tried: list[str] = []

    class Refusing(MemoryStore):
        def put_if_absent(self, key: str, data: bytes, *, content_type: str = "") -> bool:
            if away:
                raise StoreUnavailable(self.url, key, "does not answer")
            return super().put_if_absent(key, data)

        def put_file(self, key: str, path: Path) -> None:
            tried.append(key)
            raise StoreUnavailable(self.url, key, "does not answer")

    store = Refusing("refusing")
    sinks = open_sinks(TrainConfig(tensorboard=True), tmp_path, None, store, TRAINED, 1)
    stream = MetricsStream(store, TRAINED, 1, sinks)
    stream.write("step", 1, loss=2.0)
    with pytest.raises(StoreUnavailable) if away else nullcontext():
        stream.close(patience_seconds=0)
    stream.close(patience_seconds=0)
    assert [record["step"] for record in read_metrics(store, TRAINED)] == ([] if away else [1])
    assert len(tried) == (not away)
    assert ("does not answer" in caplog.text) is not away


def test_events_are_written_among_the_artifacts_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There they can be watched, and outlive a kill; the store gets those of the own attempt alone."""
    monkeypatch.setenv("STAGECOACH_ARTIFACTS", str(tmp_path / "artifacts"))
    store = MemoryStore("curves")
    inputs = tiny_inputs(store, tmp_path)
    killed = tmp_path / "artifacts" / TRAINED / "curves" / "attempt-0000" / "tensorboard" / "events"
    killed.parent.mkdir(parents=True)
    killed.touch()
    config = TrainConfig(steps=1, packs_per_step=2, compute_dtype="fp32", tensorboard=True)
    run(config, inputs, Output(store, TRAINED, tmp_path / "output"), store)
    (kept,) = store.list(f"{TRAINED}curves/")
    assert kept.key.startswith(f"{TRAINED}curves/attempt-0001/tensorboard/events")
    assert (tmp_path / "artifacts" / kept.key).read_bytes() == store.get(kept.key)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"train\.wandb_project: needs the package wandb; install it"):
        open_sinks(TrainConfig(wandb_project="p"), tmp_path, None, MemoryStore("none"), TRAINED, 1)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_starts_without_a_key_and_forces_no_entity(tmp_path: Path, mode: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path), mode],
        env={**environ, "HOME": str(tmp_path), "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert ("W&B cannot be reached" in done.stderr) == (mode == "online")
    (file,) = (tmp_path / "store" / TRAINED / "curves" / "attempt-0001" / "wandb").glob("offline-run-*/*.wandb")
    runs, points = wandb_records(file)
    assert set(runs) == {("", "chat", "tiny-0123456789abcdef")}
    assert points == [("step/loss", 2.0, 1), ("step/loss", 1.5, 2)]


def wandb_records(file: Path) -> tuple[list[tuple[str, str, str]], list[tuple[str, float, int]]]:
    """Return (entity, project, name) of each run and (curve, value, step) of each point.

    Records lie in LevelDB's log format: blocks of 32 KiB, 7 bytes before each part (checksum, length, whole or which
    part), behind a file header of 7 bytes.
    """
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = file.read_bytes(), 7, b""
    runs, points = [], []
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        _, size, part = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part not in (1, 4):  # neither whole nor the last part
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        whole = b""
        if record.WhichOneof("record_type") == "run":
            runs.append((record.run.entity, record.run.project, record.run.display_name))
        elif record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            points += [(name, value, int(values["_step"])) for name, value in values.items() if name[0] != "_"]
    return runs, points
