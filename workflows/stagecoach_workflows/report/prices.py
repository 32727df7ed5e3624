"""What an hour of a GPU costs, for the report: round on-demand figures of large clouds, in US dollars; yours differ."""

from __future__ import annotations

USD_PER_GPU_HOUR: tuple[tuple[str, float], ...] = (
    ("H200", 4.5),
    ("H100", 3.5),
    ("A100-SXM4-80GB", 2.5),
    ("A100 80GB", 2.5),
    ("A100", 2.0),
    ("L40S", 1.5),
    ("A10G", 1.0),
    ("T4", 0.4),
)
"""By a part of the GPU's name; the first that fits counts. ``stagecoach report --price`` replaces it."""


def price_of(device: str | None) -> float | None:
    """Return the price of an hour of that GPU, None for one that the table does not know."""
    return next((price for name, price in USD_PER_GPU_HOUR if device and name in device), None)
