"""Curves as inline SVG, drawn to be read at the width of a phone and of a desk.

A picture is 520 units wide and shown at 320 to 560 pixels, so that its letters are always 8 to 14 pixels high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stagecoach.html_page import Html, html

Point = tuple[float, float]

_WIDTH, _HEIGHT = 520.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 14.0, 10.0, 30.0
_MOST_POINTS = 260


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve."""

    label: str
    points: Sequence[Point]
    """(x, y) in ascending x; points that are not finite are left out."""
    style: Literal["one", "two"] = "one"
    dots: bool = False
    """Mark each point, for curves of few."""


def line_chart(title: str, x_label: str, series: Sequence[Series], show: Callable[[float], str]) -> Html:
    """Return a figure with the curves, empty if there is no point to draw.

    Args:
        title: What the curves show, with its unit.
        x_label: What the x axis counts.
        series: The curves.
        show: Turns a value of the y axis into text.
    """
    clean = [(one, [point for point in one.points if all(map(math.isfinite, point))]) for one in series]
    clean = [(one, points) for one, points in clean if points]
    if not clean:
        return Html("")
    xs = [x for _, points in clean for x, _ in points]
    ys = [y for _, points in clean for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    left, right = min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1])
    low, high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def place(point: Point) -> Point:
        across = (point[0] - left) / (right - left or 1.0)
        up = (point[1] - low) / (high - low or 1.0)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    names = " and ".join(one.label for one, _ in clean)
    parts = [f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{html(f"{title}: {names}")}">']
    parts += [_y_tick(place((left, value))[1], show(value)) for value in y_ticks]
    parts += [_x_tick(place((value, low))[0], _count(value), last=value == x_ticks[-1]) for value in x_ticks]
    for one, points in clean:
        parts.append(_curve(one, [place(point) for point in points]))
    parts.append("</svg>")
    labels = [f' <span><i class="{one.style}"></i>{html(one.label)}</span>' for one, _ in clean]
    legend = "".join(labels) if len(clean) > 1 else ""
    caption = f"<figcaption><b>{html(title)}</b>by {html(x_label)}{legend}</figcaption>"
    return Html(f"<figure>{caption}{''.join(parts)}</figure>")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most ``most`` + 1 round values that enclose the range.

    Examples:
        >>> ticks(0.3, 7.8, 4)
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / most))
    first = last = 0
    for step in (size * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Return at most ``most`` points, each the mean of equally many neighbours, so that a page stays small."""
    if len(points) <= most:
        return list(points)
    groups = [points[at * len(points) // most : (at + 1) * len(points) // most] for at in range(most)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]


def _curve(one: Series, places: Sequence[Point]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = f'<path class="{one.style}" d="{path}"/>' if len(places) > 1 else ""
    if one.dots or len(places) == 1:
        drawn += "".join(f'<circle class="{one.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return drawn


def _y_tick(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{html(text)}</text>'


def _x_tick(x: float, text: str, *, last: bool) -> str:
    anchor = "end" if last else "middle"
    return f'<text x="{x + (_RIGHT - 2 if last else 0):.1f}" y="{_HEIGHT - 8:g}" text-anchor="{anchor}">{html(text)}</text>'


def _count(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
