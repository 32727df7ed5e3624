"""The table of a campaign, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.campaign.cases import KINDS, SCOPES, WHOLE, Result

BEGIN = "<!-- campaign: written by make test-faults -->"
END = "<!-- end of campaign -->"


def summary(results: list[Result], seconds: float) -> str:
    """Return the table as Markdown: a row a kind, a column a scope, cases that ended badly after a slash."""
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
    head = (
        f"{len(results)} cases, seeds {first} to {last}, {seconds / 60:.1f} minutes,"
        f" {failed or 'none'} ended badly ({datetime.now(UTC):%Y-%m-%d})."
    )
    return f"{head}\n\n" + "\n".join(lines)


def write_report(file: Path, results: list[Result], seconds: float) -> None:
    """Put the table between the two marks of a Markdown file."""
    text = file.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{summary(results, seconds)}\n{END}{after}", encoding="utf-8")


def _sum(counts: Counter[tuple[str, str]], scope: str) -> int:
    return sum(number for (_, each), number in counts.items() if each == scope)


def _cell(number: int, bad: int) -> str:
    return f"{number} / **{bad} bad**" if bad else str(number or "")
