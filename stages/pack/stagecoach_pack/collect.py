"""Reads every row of every source once, checks it, and spools it with its hash and origin.

Conversations that are packed whatever else is read can be handed on at once, so that tokenising need not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.mixing import takes_all
from stagecoach_pack.problems import RowProblem, SourceProblems, refuse
from stagecoach_pack.sources.prepare import Chain, chain_of
from stagecoach_pack.sources.readers import DataFile, is_ignored, read_rows
from stagecoach_pack.sources.schemas import RowReader, detect_format
from stagecoach_pack.spool import Spool

_MOST_FILES = 2**16 - 1

Progress = Callable[[int, str], None]
"""Called with the rows read so far and a note."""

Take = Callable[[int, int, Conversation], None]
"""Called with a conversation's index in the spool, its source's index, and the conversation."""


class Rate:
    """Rows a second since it was made, in words."""

    def __init__(self) -> None:
        self._begin_seconds = time.monotonic()

    def of(self, rows: int) -> str:
        """Return the rate at which ``rows`` rows came."""
        return f"{rows / max(time.monotonic() - self._begin_seconds, 1e-9):,.0f} rows/s"


@dataclass(slots=True)
class SourceCounts:
    """What happened to the rows of one source until they were spooled."""

    rows_read: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)
    left_after: dict[str, int] = field(default_factory=dict)
    """Rows left after each filter, in order."""
    rows_usable: int = 0
    row_format: str = ""
    files: list[str] = field(default_factory=list)
    ignored_files: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Collected:
    """What reading all sources found, one item a source in the recipe's order."""

    counts: list[SourceCounts]
    problems: list[SourceProblems]


def collect(
    data: DataConfig,
    files: Mapping[str, Sequence[DataFile]],
    spool: Spool,
    on_progress: Progress = lambda _rows, _note: None,
    take: Take | None = None,
    *,
    of_recipe: bool = True,
) -> Collected:
    """Read all sources into ``spool``.

    Args:
        data: The recipe's data section.
        files: Local files of each source.
        spool: Gets every usable conversation.
        on_progress: Told how far it is.
        take: Gets at once, in order, what mixing will take whatever else is read; the spool keeps no text of it.
        of_recipe: A user wrote ``data``; otherwise errors name none of its sources and fields.

    Raises:
        DataError: A file is damaged, a source has no data file or no row, or rows are bad and may not be dropped.
    """
    collected = Collected([], [])
    for number, source in enumerate(data.sources):
        take_source = take if takes_all(source) else None
        collector = _SourceCollector(source, number, spool, on_progress, take_source, data.remove_duplicates)
        if not of_recipe:
            collector.problems.source = ""
        collector.read(files[source.name], stop_at_bad=data.on_bad_row == "stop")
        collected.counts.append(collector.counts)
        collected.problems.append(collector.problems)
    refuse_bad_rows(data, collected, "correct the data" + (", or set data.on_bad_row to drop" if of_recipe else ""))
    return collected


def refuse_bad_rows(
    data: DataConfig, collected: Collected, advice: str = "correct the data, or set data.on_bad_row to drop"
) -> None:
    """Stop if rows are bad and the recipe does not let them be dropped.

    Raises:
        DataError: With the first ten bad rows and their number.
    """
    for counts, found in zip(collected.counts, collected.problems, strict=True):
        counts.bad_rows = dict(sorted(found.counts.items()))
    if data.on_bad_row == "stop" and any(found.total for found in collected.problems):
        raise refuse(collected.problems, advice)
    for counts, found in zip(collected.counts, collected.problems, strict=True):
        if found.total > data.max_bad_share * counts.rows_read:
            share = f"{found.total / counts.rows_read:.2%} of the {counts.rows_read} rows of {found.source}"
            raise refuse([found], f"that is {share}, data.max_bad_share allows {data.max_bad_share:.2%}")


class _SourceCollector:
    """Reads one source."""

    def __init__(
        self,
        source: DataSource,
        number: int,
        spool: Spool,
        on_progress: Progress,
        take: Take | None,
        remove_duplicates: bool,
    ) -> None:
        self._source = source
        self._number = number
        self._spool = spool
        self._on_progress = on_progress
        self._take = take
        self._remove_duplicates = remove_duplicates
        self._chain: Chain = chain_of(source)
        self._reader = RowReader(source, source.format) if source.format != "auto" else None
        self.problems = SourceProblems.of(source.name)
        self.counts = SourceCounts(left_after=dict.fromkeys(self._chain.steps, 0))

    def read(self, files: Sequence[DataFile], *, stop_at_bad: bool) -> None:
        data_files = [file for file in files if not is_ignored(file.name)]
        self.counts.ignored_files = [file.name for file in files if is_ignored(file.name)]
        self.counts.files = [file.name for file in data_files]
        if not data_files:
            names = ", ".join(file.name for file in files) or "none"
            raise DataError(f"{self._place}: expected at least one data file, got {names[:200]}")
        for file in data_files:
            self._read_file(file)
        self.counts.row_format = self._reader.row_format if self._reader else ""
        if self.counts.rows_usable == 0 and not (stop_at_bad and self.problems.total):
            raise DataError(
                f"{self._place}: expected usable rows, got none of {self.counts.rows_read}: {self._why_empty()}"
            )

    @property
    def _place(self) -> str:
        return f"data source {self.problems.source}" if self.problems.source else "chat files"

    def _why_empty(self) -> str:
        steps = [f"{left} after '{name}'" for name, left in self.counts.left_after.items()]
        return "; ".join([*self.problems.examples[:3], *steps]) or "every row was left out"

    def _read_file(self, file: DataFile) -> None:
        self._spool.file_names.append(f"{self._source.name}/{file.name}")
        file_number = len(self._spool.file_names) - 1
        if file_number > _MOST_FILES:
            raise DataError(f"data: expected at most {_MOST_FILES + 1} files over all sources, got more; join them")
        rate = Rate()
        for row_number, value in read_rows(file):
            self.counts.rows_read += 1
            try:
                self._read_row(value, file_number, row_number)
            except RowProblem as problem:
                self.problems.add(file.name, row_number, problem)
            except RecursionError:
                self.problems.add(file.name, row_number, RowProblem("nested too deeply", "", "less nesting", "more"))
            if self.counts.rows_read % 1000 == 0:
                note = f"reading {self._source.name}: {self.counts.rows_read} rows, {rate.of(row_number)}"
                self._on_progress(self.counts.rows_read, note)

    def _read_row(self, value: Any, file_number: int, row_number: int) -> None:
        conversation = self._conversation(value)
        if conversation is None:
            return
        index, is_new = self._spool.add(
            conversation, self._number, file_number, row_number, keep_body=self._take is None
        )
        self.counts.rows_usable += 1
        if self._take is not None and (is_new or not self._remove_duplicates):
            self._take(index, self._number, conversation)

    def _conversation(self, value: Any) -> Conversation | None:
        """Return the row's conversation, or None if a filter drops it."""
        if isinstance(value, RowProblem):
            raise value
        chain, left = self._chain, self.counts.left_after
        if isinstance(value, dict):
            if chain.keep_row is not None:
                name, keep = chain.keep_row
                if not keep(value):
                    return None
                left[name] += 1
            if chain.repair_row is not None:
                value = chain.repair_row(value)
        if self._reader is None:
            self._reader = RowReader(self._source, detect_format(value, self._source.columns))
        conversation = self._reader.read(value)
        for name, test in chain.filters:
            if not test(conversation):
                return None
            left[name] += 1
        if not conversation.messages:
            raise RowProblem("empty conversation", "", "at least one message", "none")
        return conversation
