"""What the fault campaign does: every case follows from its seed alone, and any row of seeds is spread evenly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

SCOPES = ("download", "convert", "shard", "pack", "train", "export")
WHOLE = "end to end"
STREAM = "S3 fails in a stream"
"""For longer than the retries, and then it works again while the stage still runs."""
STREAM_STEPS = 3
"""Its beginning, a part in its middle and its completion fail; each ends a command."""

DIRECTORY_KINDS = (
    "kill at any time",
    "kill between objects",
    "kill in the commit",
    "disk full",
    "clock jump",
    "bit flip",
    "missing object",
    "two at once",
    "five at once",
    "gc beside",
)
S3_KINDS = (
    "S3 answers 5xx",
    "S3 hangs",
    "S3 cuts connections",
    "S3 truncates",
    "S3 lies about length",
    "S3 is slow",
    "S3 denies",
    STREAM,
)
KINDS = (*DIRECTORY_KINDS, *S3_KINDS)
WHOLE_KINDS = (
    "kill at any time",
    "kill between objects",
    "kill in the commit",
    "disk full",
    "bit flip",
    "missing object",
    "two at once",
    "five at once",
    "gc beside",
    "S3 answers 5xx",
    "S3 cuts connections",
    "S3 is slow",
)
"""Those that can be done to the real command line from outside."""


def _all_pairs() -> list[tuple[str, str]]:
    pairs = [(scope, kind) for kind in KINDS for scope in SCOPES] + [(WHOLE, kind) for kind in WHOLE_KINDS]
    random.Random("order of the campaign").shuffle(pairs)
    return pairs


PAIRS = _all_pairs()
"""What to break and how; ``len(PAIRS)`` seeds in a row hold each pair once."""


@dataclass(frozen=True)
class Case:
    """One injection with its recovery and comparison."""

    seed: int

    @property
    def scope(self) -> str:
        """The stage, or ``WHOLE``."""
        return PAIRS[self.seed % len(PAIRS)][0]

    @property
    def kind(self) -> str:
        """What goes wrong."""
        return PAIRS[self.seed % len(PAIRS)][1]

    @property
    def on_s3(self) -> bool:
        """Whether the store is an S3 server behind a proxy that fails."""
        return self.kind in S3_KINDS

    @cached_property
    def random(self) -> random.Random:
        """Every choice of the case comes from here, in a fixed order."""
        return random.Random(f"fault campaign {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a case ended."""

    seed: int
    scope: str
    kind: str
    hit: bool
    """Whether the fault met the stage while it worked; a kill may come too late, a flip may meet what nobody reads."""
    first_exit_code: int
    """Of the disturbed command; minus a signal's number where one ended it."""
    attempts: int
    """Commands until one ended with 0."""
    seconds: float
    cpu_seconds: float = 0.0
    """Of this case's own processes, the S3 server not counted: what a busy machine does not change."""
    problem: str
    """What was wrong in the end, empty if nothing was."""
    note: str = ""
