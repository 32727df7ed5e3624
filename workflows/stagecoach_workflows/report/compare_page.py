"""Two runs side by side as one static page: what differs, both loss curves, both models' answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stagecoach.html_page import Html, figures, heading, note, page, table
from stagecoach_workflows.report.charts import Series, line_chart, thin
from stagecoach_workflows.report.facts import RunFacts

_LONGEST = 200


def compare_page(first: RunFacts, second: RunFacts, differences: Sequence[tuple[str, Any, Any]]) -> bytes:
    """Return the page as UTF-8.

    Args:
        first: Facts of the first run.
        second: Facts of the second run.
        differences: (name, first value, second value) of everything that differs.
    """
    return page(f"{first.plan.run_id} and {second.plan.run_id}", _parts(first, second, differences))


def _parts(first: RunFacts, second: RunFacts, differences: Sequence[tuple[str, Any, Any]]) -> Iterator[Html]:
    ids = (first.plan.run_id, second.plan.run_id)
    yield heading("Two runs", 1)
    yield note(f"{ids[0]} ({first.state}) and {ids[1]} ({second.state})")
    yield figures(_last_losses(first, second))
    charts = [chart for chart in _charts(first, second) if chart]
    if charts:
        yield heading("Training")
        yield Html(f'<div class="charts">{"".join(charts)}</div>')
    for title, wanted in (("Recipe", True), ("Keys and measured values", False)):
        rows = [
            [name, _short(left), _short(right)]
            for name, left, right in differences
            if name.startswith("recipe.") is wanted and not name.endswith(".answers")  # they have a table of their own
        ]
        yield heading(title)
        yield table(["", *ids], rows, text=True) if rows else note("no difference")
    yield from _answers(first, second)


def _last_losses(first: RunFacts, second: RunFacts) -> Iterator[tuple[str, object]]:
    for label, facts in (("first", first), ("second", second)):
        for what, kind in (("training loss", "step"), ("held-out loss", "evaluation")):
            found = [record["loss"] for record in facts.of_kind(kind) if record.get("loss") is not None]
            if found:
                yield f"{what}, {label}", f"{found[-1]:.4f}"


def _charts(first: RunFacts, second: RunFacts) -> Iterator[Html]:
    for title, name in (("Training loss, nats a token", "loss"), ("Tokens a second", "tokens_per_second")):
        series = [
            Series(label="first", points=thin(first.values(name))),
            Series(label="second", points=thin(second.values(name)), style="two"),
        ]
        yield line_chart(title, "step", series, "{:,g}".format)
    held = [
        [(float(record["step"]), float(record["loss"])) for record in facts.of_kind("evaluation")]
        for facts in (first, second)
    ]
    series = [
        Series(label="first", points=held[0], dots=True),
        Series(label="second", points=held[1], style="two", dots=True),
    ]
    yield line_chart("Held-out loss, nats a token", "step", series, "{:g}".format)


def _answers(first: RunFacts, second: RunFacts) -> Iterator[Html]:
    said = [{pair.prompt: pair.after for pair in facts.answers} for facts in (first, second)]
    common = [prompt for prompt in said[0] if prompt in said[1]]
    if common:
        yield heading("What the models say")
        yield table(
            ["prompt", "first", "second"], [[prompt, said[0][prompt], said[1][prompt]] for prompt in common], text=True
        )


def _short(value: object) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}.."
