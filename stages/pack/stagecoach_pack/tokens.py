"""Runs the chosen conversations through rendering, the tokenizer, labelling and cutting, a batch ahead of itself.

While the tokenizer (native threads, no GIL) works on one batch, the next is read and rendered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stagecoach_pack.chat import Rendered, Renderer
from stagecoach_pack.collect import Progress, Spool
from stagecoach_pack.cutting import Cutter
from stagecoach_pack.documents import DocumentStore
from stagecoach_pack.labels import Labelled, Labeller
from stagecoach_pack.problems import RowProblem, SourceProblems

_BATCH_CHARACTERS = 1_000_000
_BATCH_CONVERSATIONS = 2048
_BATCHES_AHEAD = 2

_Result = list[Labelled | RowProblem]


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
    rendered: list[Rendered] = field(default_factory=list)


class Tokenising:
    """Tokenises conversations of a spool into a document store."""

    def __init__(
        self,
        spool: Spool,
        renderer: Renderer,
        labeller: Labeller,
        cutter: Cutter,
        problems: list[SourceProblems],
        on_progress: Progress,
    ) -> None:
        """Put the parts together; ``problems`` has one entry a source, in the recipe's order."""
        self._spool = spool
        self._renderer = renderer
        self._labeller = labeller
        self._cutter = cutter
        self._problems = problems
        self._on_progress = on_progress
        self.counts = TokenCounts()

    def run(self, chosen: npt.NDArray[np.int64], store: DocumentStore) -> None:
        """Tokenise the conversations ``chosen`` (ascending) and append their documents to ``store``, in order.

        Raises:
            DataError: A conversation is longer than a pack where that is an error, or a template does not nest.
        """
        waiting: deque[tuple[_Batch, Future[_Result]]] = deque()
        done = 0
        with ThreadPoolExecutor(1) as worker:
            for batch in self._batches(chosen):
                waiting.append((batch, worker.submit(self._labeller.label, batch.rendered)))
                if len(waiting) > _BATCHES_AHEAD:
                    done += self._take(*waiting.popleft(), store)
                    self._on_progress(done, f"tokenised {done} of {len(chosen)} conversations")
            while waiting:
                done += self._take(*waiting.popleft(), store)
        self._on_progress(done, f"tokenised {done} of {len(chosen)} conversations")

    def _batches(self, chosen: npt.NDArray[np.int64]) -> Iterator[_Batch]:
        batch, characters = _Batch(), 0
        for index, talk in zip(chosen.tolist(), self._spool.conversations(chosen), strict=True):
            try:
                rendered = self._renderer.render(talk)
            except RowProblem as problem:
                self._bad(index, problem)
                continue
            batch.indices.append(index)
            batch.rendered.append(rendered)
            characters += len(rendered.text)
            if characters >= _BATCH_CHARACTERS or len(batch.indices) >= _BATCH_CONVERSATIONS:
                yield batch
                batch, characters = _Batch(), 0
        if batch.indices:
            yield batch

    def _take(self, batch: _Batch, future: Future[_Result], store: DocumentStore) -> int:
        for index, labelled in zip(batch.indices, future.result(), strict=True):
            if isinstance(labelled, RowProblem):
                self._bad(index, labelled)
                continue
            self.counts.crossing_tokens += labelled.num_crossing
            self.counts.literal_control_strings += labelled.num_literal
            self.counts.tools_as_text += labelled.tools_as_text
            pieces = self._cutter.pieces(labelled, self.origin(index))
            for piece in pieces:
                if piece.trained.any():
                    store.add(piece, index)
                else:
                    self.counts.without_targets[self._problems[int(self._spool.sources[index])].source] += 1
        return len(batch.indices)

    def origin(self, index: int) -> str:
        """Return where a conversation comes from, for messages."""
        return f"{self._spool.file_names[int(self._spool.files[index])]}: row {int(self._spool.rows[index])}"

    def _bad(self, index: int, problem: RowProblem) -> None:
        file = self._spool.file_names[int(self._spool.files[index])].split("/", 1)[1]
        self._problems[int(self._spool.sources[index])].add(file, int(self._spool.rows[index]), problem)
