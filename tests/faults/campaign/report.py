"""The table of a campaign, for the terminal and for docs/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.campaign.cases import KINDS, SCOPES, WHOLE, Result

BEGIN = "<!-- campaign: written by make test-faults -->"
END = "<!-- end of campaign -->"


def read_results(file: Path) -> list[Result]:
    """Return the cases of a results' file that ended well; a line cut off by a kill is none."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            result = Result(**json.loads(line))
        except ValueError:
            continue
        if not result.problem:
            found.append(result)
    return found


def write_results(file: Path, results: list[Result]) -> None:
    """Let the file hold these, a line each, and nothing else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("", encoding="utf-8")
    for result in results:
        append_result(file, result)


def append_result(file: Path, result: Result) -> None:
    """Add a line."""
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(result)) + "\n")


def summary(results: list[Result], wall_minutes: float | None = None) -> str:
    """Return the table as Markdown: a row a kind, a column a scope, cases that ended badly after a slash.

    Args:
        results: Every case.
        wall_minutes: How long all of them took side by side, None for a campaign that was cut and resumed.
    """
    counted = Counter((result.kind, result.scope) for result in results)
    bad = Counter((result.kind, result.scope) for result in results if result.problem)
    hit = Counter(result.kind for result in results if result.hit)
    scopes = [*SCOPES, WHOLE]
    lines = ["| fault | " + " | ".join(scopes) + " | all | met the work |", "|---|" + "---:|" * (len(scopes) + 2)]
    for kind in KINDS:
        cells = [_cell(counted[kind, scope], bad[kind, scope]) for scope in scopes]
        total = sum(counted[kind, scope] for scope in scopes)
        lines.append(f"| {kind} | {' | '.join(cells)} | {total} | {hit[kind]} |")
    totals = [_cell(_sum(counted, scope), _sum(bad, scope)) for scope in scopes]
    lines.append(f"| **all** | {' | '.join(totals)} | {len(results)} | {sum(hit.values())} |")
    first, last = min(result.seed for result in results), max(result.seed for result in results)
    failed = sum(bool(result.problem) for result in results)
    minutes = sum(result.seconds for result in results) / 60
    wall = f"{wall_minutes:.1f} minutes in all, " if wall_minutes is not None else ""
    head = (
        f"{len(results)} cases, seeds {first} to {last}, {wall}{minutes:.1f} minutes of cases one after the other,"
        f" {failed or 'none'} ended badly ({datetime.now(UTC):%Y-%m-%d})."
    )
    return f"{head}\n\n" + "\n".join(lines)


def write_report(file: Path, results: list[Result], wall_minutes: float | None = None) -> None:
    """Put the table between the two marks of a Markdown file; arguments as of ``summary``."""
    text = file.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{summary(results, wall_minutes)}\n{END}{after}", encoding="utf-8")


def _sum(counts: Counter[tuple[str, str]], scope: str) -> int:
    return sum(number for (_, each), number in counts.items() if each == scope)


def _cell(number: int, bad: int) -> str:
    return f"{number} / **{bad} bad**" if bad else str(number or "")
