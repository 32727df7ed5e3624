"""Compares a benchmark's figures with ``floors.toml`` and closes it with one line of ``key=value``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

Figure = float | int


def judge(benchmark: str, figures: Mapping[str, Figure], *more: str) -> int:
    """Print what is not good enough, then all figures in one line, and return the exit code.

    Args:
        benchmark: Section of ``floors.toml``; its tables ``least`` and ``most`` hold the limits, by name of figure.
        figures: What was measured.
        more: Further sections, for parts of the benchmark that were run too.
    """
    floors = tomllib.loads(Path(__file__).with_name("floors.toml").read_text(encoding="utf-8"))
    failures = [
        f"{name} {figures[name]} {sign} {limit}"
        for table, sign in (("least", "<"), ("most", ">"))
        for section in (benchmark, *more)
        for name, limit in floors[section].get(table, {}).items()
        if (figures[name] < limit if table == "least" else figures[name] > limit)
    ]
    for failure in failures:
        print(f"not good enough: {failure}")
    print(" ".join(f"{name}={value}" for name, value in figures.items()), flush=True)
    return 1 if failures else 0
