"""The losses in the model card."""

from __future__ import annotations

import json
from pathlib import Path

from stagecoach.storage.memory import MemoryStore
from stagecoach_export.loss_curve import bars, loss_rows, read_losses, spread
from tests.tiny_models import Pipeline


def _lines(*losses: tuple[int, float | None]) -> bytes:
    return b"\n".join(json.dumps({"kind": "step", "step": step, "loss": loss}).encode() for step, loss in losses)


def test_the_higher_attempt_counts_and_later_steps_do_not(tmp_path: Path) -> None:
    files = {
        "metrics/attempt-0001-000001.jsonl": b'{"kind":"start","step":0}\n' + _lines((1, 9.0), (2, 8.0)),
        "metrics/attempt-0002-000001.jsonl": _lines((2, 7.0), (3, None), (4, 5.0)),
        "iter_0000003/index.json": b"",
    }
    trained = Pipeline(MemoryStore(), tmp_path).finish("trained/m-1/", files)
    assert read_losses(trained, 3) == {1: 9.0, 2: 7.0}


def test_bars_go_from_the_lowest_to_the_highest_mean() -> None:
    assert bars([4.0, 3.0, 2.0, 0.5]) == "█▆▄▁"
    assert bars([1.0, 1.0]) == "▁▁"
    assert bars([]) == ""
    # 600 steps are 60 bars of ten steps each
    assert bars([float(step // 10) for step in range(600)]) == bars([float(step) for step in range(60)])


def test_a_row_holds_the_mean_since_the_row_before() -> None:
    heldout = {"0": {"loss": 5.0, "accuracy": 0.0}, "2": {"loss": 4.0, "accuracy": 0.25}, "4": {"loss": None}}
    assert loss_rows({1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5}, heldout) == [
        ("0", "", "5.0000", "0.0%"),
        ("2", "3.0000", "4.0000", "25.0%"),
        ("4", "0.7500", "", ""),
    ]


def test_without_evaluation_the_steps_themselves_are_shown() -> None:
    assert loss_rows({1: 4.0, 2: 2.0}, {}) == [("1", "4.0000", "", ""), ("2", "2.0000", "", "")]


def test_first_and_last_are_always_there() -> None:
    assert spread(range(1, 101), 4) == [1, 34, 67, 100]
    assert spread([1, 2], 4) == [1, 2]
