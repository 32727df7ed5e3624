"""Runs conversations through rendering, the tokenizer, labelling and cutting, some batches ahead of itself.

While the tokenizer (native threads, no GIL) works on one batch, the next ones are read and rendered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from stagecoach.errors import DataError
from stagecoach_pack.chat import Rendered, Renderer
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.cutting import Cutter, TooLongError
from stagecoach_pack.documents import DocumentStore
from stagecoach_pack.labels import Labelled, Labeller
from stagecoach_pack.problems import RowProblem, SourceProblems
from stagecoach_pack.spool import Spool

_BATCH_CHARACTERS = 500_000
_BATCH_CONVERSATIONS = 2048
_WORKERS = 2
"""Two, so that the tokenizer has the next batch when the last conversation of one still keeps a core busy."""
_BATCHES_AHEAD = 4


@dataclass(slots=True)
class TokenCounts:
    """What tokenising counted, by source name where it is a mapping."""

    without_targets: Counter[str] = field(default_factory=Counter)
    crossing_tokens: int = 0
    literal_control_strings: int = 0
    tools_as_text: int = 0


@dataclass(slots=True)
class _Batch:
    indices: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    rendered: list[Rendered] = field(default_factory=list)
    num_characters: int = 0


class Tokenising:
    """Tokenises conversations into a document store, in the order in which they are added.

    Attributes:
        counts: What was counted.
        problems: Rows that cannot be packed, one entry a source, in the recipe's order.
    """

    def __init__(
        self,
        spool: Spool,
        renderer: Renderer,
        labeller: Labeller,
        cutter: Cutter,
        documents: DocumentStore,
        sources: Sequence[str],
    ) -> None:
        """Put the parts together; ``sources`` are the sources' names."""
        self._spool = spool
        self._renderer = renderer
        self._labeller = labeller
        self._cutter = cutter
        self._documents = documents
        self.problems = [SourceProblems.of(source) for source in sources]
        self.counts = TokenCounts()
        self._batch = _Batch()
        self._waiting: deque[tuple[_Batch, Future[list[Labelled | RowProblem]]]] = deque()
        self._workers = ThreadPoolExecutor(_WORKERS)
        self._failure: DataError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.shutdown(cancel_futures=True)

    def add(self, index: int, source: int, talk: Conversation) -> None:
        """Take a conversation of the spool; what does not fit is told by ``finish``, when all rows were read.

        Args:
            index: Its index in the spool.
            source: Its source's index.
            talk: The conversation.
        """
        if self._failure is not None:
            return
        try:
            rendered = self._renderer.render(talk)
        except RowProblem as problem:
            self._bad(index, source, problem)
            return
        except DataError as error:
            self._failure = error
            return
        batch = self._batch
        batch.indices.append(index)
        batch.sources.append(source)
        batch.rendered.append(rendered)
        batch.num_characters += len(rendered.text)
        if batch.num_characters >= _BATCH_CHARACTERS or len(batch.indices) >= _BATCH_CONVERSATIONS:
            self._submit()
            if len(self._waiting) > _BATCHES_AHEAD:
                self._store(*self._waiting.popleft())

    def finish(self) -> None:
        """Store the documents of all that was added.

        Raises:
            DataError: A conversation is longer than a pack where that is an error, or a template does not nest.
        """
        self._submit()
        while self._waiting:
            self._store(*self._waiting.popleft())
        if self._failure is not None:
            raise self._failure

    def _submit(self) -> None:
        self._waiting.append((self._batch, self._workers.submit(self._labeller.label, self._batch.rendered)))
        self._batch = _Batch()

    def _store(self, batch: _Batch, future: Future[list[Labelled | RowProblem]]) -> None:
        for index, source, labelled in zip(batch.indices, batch.sources, future.result(), strict=True):
            if isinstance(labelled, RowProblem):
                self._bad(index, source, labelled)
                continue
            self.counts.crossing_tokens += labelled.num_crossing
            self.counts.literal_control_strings += labelled.num_literal
            self.counts.tools_as_text += labelled.tools_as_text
            try:
                pieces = self._cutter.pieces(labelled)
            except TooLongError as error:
                file, row = self._spool.origin(index)
                self._failure = self._failure or DataError(f"{file}: row {row}: {error}")
                return
            for piece in pieces:
                if piece.trained.any():
                    self._documents.add(piece, index)
                else:
                    self.counts.without_targets[self.problems[source].source] += 1

    def _bad(self, index: int, source: int, problem: RowProblem) -> None:
        file, row = self._spool.origin(index)
        self.problems[source].add(file.split("/", 1)[1], row, problem)
