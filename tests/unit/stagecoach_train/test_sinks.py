"""TensorBoard's events read back by its own reader, and W&B's files by the real package in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagecoach.errors import ConfigError
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.sinks import open_sinks

DRAW = """
import logging, sys
from pathlib import Path
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.sinks import open_sinks
logging.basicConfig()
config = TrainConfig(wandb_project="chat", wandb_offline=sys.argv[2] == "offline")
(sink,) = open_sinks(config, Path(sys.argv[1]), "tiny")
sink.write({"kind": "step", "step": 1, "loss": 2.0})
sink.write({"kind": "step", "step": 2, "loss": 1.5})
sink.close()
"""


def test_tensorboards_own_reader_finds_every_number(tmp_path: Path) -> None:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    (sink,) = open_sinks(TrainConfig(tensorboard=True), tmp_path, "tiny")
    for step, loss in ((1, 2.0), (2, 1.5)):
        sink.write({"kind": "step", "step": step, "loss": loss, "skipped": False, "mfu": None})
    sink.write({"kind": "evaluation", "step": 2, "loss": 1.75, "per_source": {"chat": 1.25}})
    sink.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["evaluation/loss", "evaluation/per_source/chat", "step/loss"]
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 2.0), (2, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("evaluation/per_source/chat")] == [(2, 1.25)]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"train\.wandb_project: needs the package wandb; install it"):
        open_sinks(TrainConfig(wandb_project="p"), tmp_path, "tiny")


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
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    runs, points = wandb_records(file)
    assert set(runs) == {("", "chat", "tiny")}
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
