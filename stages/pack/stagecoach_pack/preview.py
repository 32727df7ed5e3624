"""Shows what packing would make of chat files: conversations with their trained tokens in colour, and token counts of
files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from stagecoach.errors import DataError
from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.recipe.data import DataConfig, DataSource
from stagecoach.recipe.pack import TrainOn
from stagecoach.recipe.source import DirectorySource
from stagecoach.terminal import visible
from stagecoach_pack.chat import Renderer
from stagecoach_pack.collect import collect
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.labels import Labelled, Labeller
from stagecoach_pack.problems import RowProblem
from stagecoach_pack.sources.readers import DataFile
from stagecoach_pack.spool import Spool

_TRAINED_STYLE = "bold green"
_CONTROL_STYLE = "magenta"
_COUNTED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Previewed:
    """One conversation as it would be packed.

    Attributes:
        origin: Its file and row.
        ids: int32 [n].
        trained: This token is a target, bool [n].
        tokens: Each token as the vocabulary spells it.
        problem: Why it cannot be packed; empty if it can.
    """

    origin: str
    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    tokens: list[str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """Size of one source in one tokenizer, in its chat form."""

    name: str
    num_rows: int
    num_tokens: int
    num_trained_tokens: int
    longest_tokens: int

    @property
    def mean_tokens(self) -> float:
        """Tokens of a conversation, on average."""
        return self.num_tokens / self.num_rows if self.num_rows else 0.0


def preview(
    data: DataConfig,
    files: Mapping[str, Sequence[DataFile]],
    tokenizer: ChatTokenizer,
    *,
    train_on: TrainOn = "assistant",
    rows: int = 3,
) -> Iterator[Previewed]:
    """Yield the first conversations of each source as they would be packed, uncut.

    Args:
        data: The recipe's data section.
        files: Local files of each source.
        tokenizer: The final tokenizer.
        train_on: Which messages are targets.
        rows: Conversations of each source.

    Raises:
        DataError: The files cannot be read, or rows are bad and may not be dropped.
    """
    with _Spooled(data, files) as spool:
        chosen = np.concatenate([np.flatnonzero(spool.sources == number)[:rows] for number in range(len(data.sources))])
        renderer, labeller = Renderer(tokenizer, train_on), Labeller(tokenizer)
        for index, talk in zip(chosen.tolist(), spool.conversations(chosen), strict=True):
            origin = f"{spool.file_names[int(spool.files[index])]}: row {int(spool.rows[index])}"
            try:
                rendered = renderer.render(talk)
                (labelled,) = labeller.label([rendered])
            except RowProblem as problem:
                labelled = problem
            if isinstance(labelled, RowProblem):
                yield Previewed(origin, np.zeros(0, np.int32), np.zeros(0, np.bool_), [], str(labelled))
            else:
                tokens = [tokenizer.token_of(token_id) for token_id in labelled.ids.tolist()]
                yield Previewed(origin, labelled.ids, labelled.trained, tokens)


def preview_text(shown: Previewed, tokenizer: ChatTokenizer, *, with_ids: bool = False) -> Text:
    """Return a conversation for the terminal: trained tokens bold green, control tokens magenta, ids behind each
    token on request.
    """
    text = Text(f"{visible(shown.origin)}: {len(shown.ids)} tokens, {int(shown.trained.sum())} trained\n", style="bold")
    if shown.problem:
        return text.append(shown.problem + "\n", style="red")
    controls = set(tokenizer.control_ids.values())
    if with_ids:
        for token_id, token, trained in zip(shown.ids.tolist(), shown.tokens, shown.trained.tolist(), strict=True):
            text.append(
                visible(token), style=_TRAINED_STYLE if trained else _CONTROL_STYLE if token_id in controls else ""
            )
            text.append(f"\u00b7{token_id} ", style="dim")
            if token in ("<0x0A>", "\u010a"):
                text.append("\n")
        return text.append("\n")
    borders = np.flatnonzero(np.diff(shown.trained.astype(np.int8))) + 1
    done = ""
    for begin, end in zip([0, *borders.tolist()], [*borders.tolist(), len(shown.ids)], strict=True):
        upto = tokenizer.decode(shown.ids[:end].tolist())
        text.append(visible(upto[len(done) :]), style=_TRAINED_STYLE if begin < end and shown.trained[begin] else "")
        done = upto
    return text.append("\n")


def data_statistics(files: Sequence[DataFile], tokenizer: ChatTokenizer) -> Iterator[FileStatistics]:
    """Yield the token counts of each file, one after the other, as if all were packed.

    Raises:
        DataError: A file cannot be read, or has bad rows.
    """
    labeller, renderer = Labeller(tokenizer), Renderer(tokenizer, "assistant")
    for file in files:
        source = DataSource(name="file", source=DirectorySource(path=str(file.path)))
        data = DataConfig(name="statistics", sources=(source,))
        lengths: list[int] = []
        num_trained = 0
        with _Spooled(data, {"file": [file]}, of_recipe=False) as spool:
            for start in range(0, len(spool), _COUNTED_AT_ONCE):
                talks = list(spool.conversations(np.arange(start, min(start + _COUNTED_AT_ONCE, len(spool)))))
                for labelled in _labelled(talks, renderer, labeller, file.name):
                    lengths.append(len(labelled.ids))
                    num_trained += int(labelled.trained.sum())
        yield FileStatistics(file.name, len(lengths), sum(lengths), num_trained, max(lengths, default=0))


def _labelled(talks: Sequence[Conversation], renderer: Renderer, labeller: Labeller, name: str) -> Iterator[Labelled]:
    try:
        rendered = [renderer.render(talk) for talk in talks]
    except RowProblem as problem:
        raise DataError(f"{name}: {problem}") from problem
    for labelled in labeller.label(rendered):
        if isinstance(labelled, RowProblem):
            raise DataError(f"{name}: {labelled}") from labelled
        yield labelled


def statistics_table(rows: Sequence[FileStatistics]) -> Table:
    """Return the counts as a table, with a last row for all files together."""
    table = Table("file", "rows", "tokens", "trained", "mean", "longest")
    for column in table.columns[1:]:
        column.justify = "right"
    total = FileStatistics(
        "all",
        sum(row.num_rows for row in rows),
        sum(row.num_tokens for row in rows),
        sum(row.num_trained_tokens for row in rows),
        max((row.longest_tokens for row in rows), default=0),
    )
    for row in [*rows, total] if len(rows) > 1 else rows:
        counts = (f"{row.num_rows:,}", f"{row.num_tokens:,}", f"{row.num_trained_tokens:,}")
        table.add_row(visible(row.name), *counts, f"{row.mean_tokens:.1f}", f"{row.longest_tokens:,}")
    return table


class _Spooled:
    """A spool of all rows in a temporary folder, gone when the block ends."""

    def __init__(self, data: DataConfig, files: Mapping[str, Sequence[DataFile]], *, of_recipe: bool = True) -> None:
        self._data = data
        self._of_recipe = of_recipe
        self._files = files
        self._folder = Path(tempfile.mkdtemp(prefix="stagecoach-preview-"))
        self._spool = Spool(self._folder)

    def __enter__(self) -> Spool:
        try:
            collect(self._data, self._files, self._spool, of_recipe=self._of_recipe)
        except BaseException:
            self.__exit__()
            raise
        return self._spool

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        shutil.rmtree(self._folder, ignore_errors=True)
