"""Learning rates, by hand: the original's Mistral recipe and every shape."""

from __future__ import annotations

from typing import Any

import pytest

from stagecoach.recipe.train import TrainConfig
from stagecoach_train.schedule import learning_rate

MISTRAL: dict[str, Any] = {"lr": 1e-5, "min_lr": 1e-6, "warmup_steps": 50, "steps": 760}


@pytest.mark.parametrize(("update", "rate"), [(0, 0.0), (1, 2e-7), (50, 1e-5), (405, 5.5e-6), (760, 1e-6)])
def test_the_originals_rates_before_each_iteration(update: int, rate: float) -> None:
    config = TrainConfig(**MISTRAL, first_update_at_zero=True)
    assert learning_rate(config, update, 760) == pytest.approx(rate, rel=1e-12, abs=0.0)


@pytest.mark.parametrize(("update", "rate"), [(0, 2e-7), (49, 1e-5), (404, 5.5e-6), (759, 1e-6)])
def test_by_default_the_first_update_moves_and_the_last_one_is_the_end(update: int, rate: float) -> None:
    assert learning_rate(TrainConfig(**MISTRAL), update, 760) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # ten steps, two of warm-up, peak 1, end 0.2; positions 1 .. 10
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        # sqrt(2 / position), never below 0.2
        ("inverse_square_root", [0.5, 1, 0.81650, 0.70711, 0.63246, 0.57735, 0.53452, 0.5, 0.47140, 0.44721]),
        # the last four of ten fall linearly
        ("wsd", [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        # 0.2 + 0.8 (1 + cos(pi (p - 2) / 8)) / 2
        ("cosine", [0.5, 1, 0.96955, 0.88284, 0.75307, 0.6, 0.44693, 0.31716, 0.23045, 0.2]),
    ],
)
def test_every_shape(schedule: str, rates: list[float]) -> None:
    config = TrainConfig.model_validate(
        {"lr": 1.0, "min_lr": 0.2, "warmup_steps": 2, "steps": 10, "schedule": schedule, "decay_share": 0.4}
    )
    assert [learning_rate(config, update, 10) for update in range(10)] == pytest.approx(rates, abs=1e-5)


def test_without_warmup_the_first_rate_is_near_the_peak() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.0, warmup_steps=0, steps=4, schedule="linear")
    assert [learning_rate(config, update, 4) for update in range(4)] == [0.75, 0.5, 0.25, 0.0]


def test_the_inverse_square_root_stops_at_the_end_rate() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.5, warmup_steps=1, steps=100, schedule="inverse_square_root")
    assert learning_rate(config, 98, 100) == 0.5


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_beyond_the_end_the_end_rate_stays(schedule: str) -> None:
    config = TrainConfig.model_validate({**MISTRAL, "schedule": schedule})
    assert learning_rate(config, 800, 760) == pytest.approx(1e-6, rel=1e-12)
