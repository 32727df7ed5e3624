"""Collects the rows that cannot be used, so that a person sees the first ten and the count of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stagecoach.errors import DataError

_SHOWN = 10
_LONGEST_FOUND = 80


class RowProblem(Exception):
    """Why one row cannot be used; the place in the data is added by whoever knows it.

    Attributes:
        reason: Short name of the kind of problem, for counting.
        field: Path of the field inside the row, such as ``messages[2].role``; empty for the whole row.
        expected: What should be there.
        found: What is there, shortened.
    """

    def __init__(self, reason: str, field: str, expected: str, found: object) -> None:
        """Keep the parts."""
        self.reason = reason
        self.field = field
        self.expected = expected
        self.found = shorten(found)
        super().__init__(f"{field or 'row'}: expected {expected}, found {self.found}")


def shorten(value: object) -> str:
    """Return a readable form of any value on one line of at most 80 characters, in printable ASCII."""
    if isinstance(value, (dict, list, tuple)):
        text = f"{type(value).__name__} of {len(value)}: " + ascii(list(value)[:6])
    else:
        text = ascii(value if not isinstance(value, str) else value[: _LONGEST_FOUND * 2])
    return text if len(text) <= _LONGEST_FOUND else text[: _LONGEST_FOUND - 3] + "..."


@dataclass(slots=True)
class SourceProblems:
    """The bad rows of one source; its name is empty for files that belong to no recipe."""

    source: str
    counts: Counter[str]
    examples: list[str]

    @classmethod
    def of(cls, source: str) -> SourceProblems:
        """Start with none."""
        return cls(source, Counter(), [])

    @property
    def total(self) -> int:
        """Number of bad rows."""
        return sum(self.counts.values())

    def add(self, file: str, row: int, problem: RowProblem) -> None:
        """Take one; ``row`` counts from 1 (a line number in JSON lines)."""
        self.counts[problem.reason] += 1
        if len(self.examples) < _SHOWN:
            place = f"{self.source}: {file}" if self.source else file
            self.examples.append(f"{place}: row {row}: {str(problem).removeprefix('row: ')}")

    def join(self, later: SourceProblems) -> None:
        """Take those that were found after these."""
        self.counts += later.counts
        self.examples = (self.examples + later.examples)[:_SHOWN]


def refuse(all_problems: list[SourceProblems], advice: str) -> DataError:
    """Return the error that shows the first ten problems of all sources and the total; a single one in one line."""
    total = sum(problems.total for problems in all_problems)
    examples = [line for problems in all_problems for line in problems.examples][:_SHOWN]
    if total == 1:
        return DataError(f"{examples[0]}; {advice}")
    more = f"\n  .. and {total - len(examples)} more" if total > len(examples) else ""
    return DataError(f"{total} bad rows; {advice}:\n  " + "\n  ".join(examples) + more)
