"""The training's losses for the model card: one line of bars, and a table with training and held-out loss side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagecoach.metrics_file import read_finished_metrics
from stagecoach.outputs import Input

NUM_ROWS = 12
NUM_BARS = 60

_BARS = "▁▂▃▄▅▆▇█"


def read_losses(trained: Input, last_step: int) -> dict[int, float]:
    """Return the training loss of each step up to ``last_step``; of two attempts of one step the higher counts.

    A checkpoint of a training that still runs has no metrics beside it, and gives nothing.
    """
    losses: dict[int, float] = {}
    for record in read_finished_metrics(trained):
        loss = record.get("loss")
        if record["kind"] == "step" and isinstance(loss, (int, float)) and record["step"] <= last_step:
            losses[record["step"]] = float(loss)
    return dict(sorted(losses.items()))


def bars(losses: Sequence[float]) -> str:
    """Return the losses as a line of bars, each the mean of equally many steps.

    Examples:
        >>> bars([4.0, 3.0, 2.0, 0.5])
        '█▆▄▁'
    """
    count = min(NUM_BARS, len(losses))
    parts = [losses[at * len(losses) // count : (at + 1) * len(losses) // count] for at in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def loss_rows(losses: Mapping[int, float], heldout: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return ``(step, training loss since the row before, held-out loss, accuracy)``, at most a dozen rows.

    Args:
        losses: Of ``read_losses``.
        heldout: Step -> held-out evaluation, as the training's state has it.
    """
    evaluated = {int(step): found for step, found in heldout.items() if isinstance(found, Mapping)}
    rows: list[tuple[str, ...]] = []
    before = -1
    for step in spread(sorted(evaluated) or sorted(losses), NUM_ROWS):
        since = [loss for at, loss in losses.items() if before < at <= step]
        found = evaluated.get(step, {})
        rows.append(
            (
                f"{step:,}",
                f"{sum(since) / len(since):.4f}" if since else "",
                _number(found.get("loss"), ".4f"),
                _number(found.get("accuracy"), ".1%"),
            )
        )
        before = step
    return rows


def spread(values: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` values at equal distances, first and last among them."""
    if len(values) <= count:
        return list(values)
    last = len(values) - 1
    return [values[round(at * last / (count - 1))] for at in range(count)]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else ""
