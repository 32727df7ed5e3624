"""Reads every row of every source once, checks it, and spools it to a scratch file with its hash and origin.

The whole input is known to be good before the first token is made, and memory holds about 60 bytes a row whatever its
text.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stagecoach.errors import DataError
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach_pack.conversation import HASH_BYTES, Conversation, conversation_from_json
from stagecoach_pack.problems import RowProblem, SourceProblems, refuse
from stagecoach_pack.sources.prepare import Chain, chain_of
from stagecoach_pack.sources.readers import DataFile, is_ignored, read_rows
from stagecoach_pack.sources.schemas import RowReader, detect_format

_MOST_FILES = 2**16 - 1

Progress = Callable[[int, str], None]
"""Called with the rows read so far and a note."""


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


class Spool:
    """Conversations on disk in the order they were read, with their origins in memory.

    The arrays, one item a conversation: ``sources`` uint16, ``files`` uint16 (index into ``file_names``), ``rows``
    uint64 (from 1), ``digests`` uint8 [n, 16], ``sides`` uint64 (see ``Conversation.side``).
    """

    def __init__(self, folder: Path) -> None:
        """Start an empty spool in a scratch folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._bodies = open(folder / "conversations.spool", "w+b", buffering=1024 * 1024)  # noqa: SIM115 - closed by close()
        self._ids = open(folder / "ids.spool", "w+b", buffering=1024 * 1024)  # noqa: SIM115
        self._paths = (folder / "conversations.spool", folder / "ids.spool")
        self._body_ends, self._id_ends = array("Q", [0]), array("Q", [0])
        self._sources, self._files, self._rows = array("H"), array("H"), array("Q")
        self._sides = array("Q")
        self._digests = bytearray()
        self.file_names: list[str] = []

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self._rows)

    def add(self, conversation: Conversation, source: int, file: int, row: int) -> None:
        """Append one conversation.

        Raises:
            RowProblem: Its text has no UTF-8 form.
        """
        body, digest = conversation.to_json()
        identity = conversation.identity.encode("utf-8", "backslashreplace")
        self._bodies.write(body)
        self._ids.write(identity)
        self._body_ends.append(self._body_ends[-1] + len(body))
        self._id_ends.append(self._id_ends[-1] + len(identity))
        self._digests += digest
        self._sides.append(conversation.side())
        self._sources.append(source)
        self._files.append(file)
        self._rows.append(row)

    @property
    def sources(self) -> npt.NDArray[np.uint16]:
        """Source of each conversation."""
        return np.frombuffer(self._sources, np.uint16) if self._sources else np.zeros(0, np.uint16)

    @property
    def files(self) -> npt.NDArray[np.uint16]:
        """File of each conversation."""
        return np.frombuffer(self._files, np.uint16) if self._files else np.zeros(0, np.uint16)

    @property
    def rows(self) -> npt.NDArray[np.uint64]:
        """Row of each conversation in its file, from 1."""
        return np.frombuffer(self._rows, np.uint64) if self._rows else np.zeros(0, np.uint64)

    @property
    def digests(self) -> npt.NDArray[np.uint8]:
        """Hash of each conversation's messages and tools, [n, 16]."""
        return np.frombuffer(bytes(self._digests), np.uint8).reshape(-1, HASH_BYTES)

    @property
    def sides(self) -> npt.NDArray[np.uint64]:
        """Number of each conversation that decides whether it is held out."""
        return np.frombuffer(self._sides, np.uint64) if self._sides else np.zeros(0, np.uint64)

    def conversations(self, chosen: npt.NDArray[np.int64]) -> Iterator[Conversation]:
        """Yield the conversations of these indices, which ascend."""
        self._bodies.flush()
        for index in chosen.tolist():
            self._bodies.seek(self._body_ends[index])
            yield conversation_from_json(self._bodies.read(self._body_ends[index + 1] - self._body_ends[index]))

    def identity(self, index: int) -> bytes:
        """Return the row's own id as UTF-8; empty where it has none."""
        if self._id_ends[index] == self._id_ends[index + 1]:
            return b""
        self._ids.flush()
        self._ids.seek(self._id_ends[index])
        return self._ids.read(self._id_ends[index + 1] - self._id_ends[index])

    def close(self) -> None:
        """Remove the scratch files."""
        self._bodies.close()
        self._ids.close()
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


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
) -> Collected:
    """Read all sources into ``spool``.

    Raises:
        DataError: A file is damaged, a source has no data file or no row, or rows are bad and may not be dropped.
    """
    collected = Collected([], [])
    for number, source in enumerate(data.sources):
        collector = _SourceCollector(source, number, spool, on_progress)
        collector.read(files[source.name], stop_at_bad=data.on_bad_row == "stop")
        collected.counts.append(collector.counts)
        collected.problems.append(collector.problems)
    refuse_bad_rows(data, collected)
    return collected


def refuse_bad_rows(data: DataConfig, collected: Collected) -> None:
    """Stop if rows are bad and the recipe does not let them be dropped.

    Raises:
        DataError: With the first ten bad rows and their number.
    """
    for counts, found in zip(collected.counts, collected.problems, strict=True):
        counts.bad_rows = dict(sorted(found.counts.items()))
    if data.on_bad_row == "stop" and any(found.total for found in collected.problems):
        raise refuse(collected.problems, "correct the data, or set data.on_bad_row to drop")
    for counts, found in zip(collected.counts, collected.problems, strict=True):
        if found.total > data.max_bad_share * counts.rows_read:
            share = f"{found.total / counts.rows_read:.2%} of the {counts.rows_read} rows of {found.source}"
            raise refuse([found], f"that is {share}, data.max_bad_share allows {data.max_bad_share:.2%}")


class _SourceCollector:
    """Reads one source."""

    def __init__(self, source: DataSource, number: int, spool: Spool, on_progress: Progress) -> None:
        self._source = source
        self._number = number
        self._spool = spool
        self._on_progress = on_progress
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
            raise DataError(f"data source {self._source.name}: expected at least one data file, got {names[:200]}")
        for file in data_files:
            self._read_file(file)
        self.counts.row_format = self._reader.row_format if self._reader else ""
        if self.counts.rows_usable == 0 and not (stop_at_bad and self.problems.total):
            raise DataError(
                f"data source {self._source.name}: expected usable rows, got none of {self.counts.rows_read}:"
                f" {self._why_empty()}"
            )

    def _why_empty(self) -> str:
        steps = [f"{left} after '{name}'" for name, left in self.counts.left_after.items()]
        return "; ".join([*self.problems.examples[:3], *steps]) or "every row was left out"

    def _read_file(self, file: DataFile) -> None:
        self._spool.file_names.append(f"{self._source.name}/{file.name}")
        file_number = len(self._spool.file_names) - 1
        if file_number > _MOST_FILES:
            raise DataError(f"data: expected at most {_MOST_FILES + 1} files over all sources, got more; join them")
        for row_number, value in read_rows(file):
            self.counts.rows_read += 1
            try:
                conversation = self._conversation(value)
                if conversation is not None:
                    self._spool.add(conversation, self._number, file_number, row_number)
                    self.counts.rows_usable += 1
            except RowProblem as problem:
                self.problems.add(file.name, row_number, problem)
            except RecursionError:
                self.problems.add(file.name, row_number, RowProblem("nested too deeply", "", "less nesting", "more"))
            if self.counts.rows_read % 1000 == 0:
                self._on_progress(self.counts.rows_read, f"reading {self._source.name}: {self.counts.rows_read} rows")

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
