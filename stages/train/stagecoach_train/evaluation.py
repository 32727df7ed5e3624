"""The held-out loss: of the whole split, of each source, and of each document by the hash of its conversation.

The packs of the split are dealt out to the copies of the model in turn. Each document is computed by one copy, so a
sum over all ranks of arrays that hold zero elsewhere gives every rank the same numbers, whatever the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.formats.packed import PackedSplit
from stagecoach.metrics_file import WORST_LOSS
from stagecoach_train.batch import MicroBatch, MicroBatchShape
from stagecoach_train.data import Packs, join_packs
from stagecoach_train.ranks import Ranks
from stagecoach_train.results import EvalResult
from stagecoach_train.train_state import HeldoutLoss

_LARGEST = 1.7976931348623157e308


class Evaluates(Protocol):
    """The part of the engine that is needed here."""

    def evaluate(self, batch: MicroBatch) -> EvalResult:
        """Return the loss of one micro-batch without training."""


@dataclass(frozen=True, slots=True)
class HeldoutDocuments:
    """The documents of the held-out split, by document number.

    Attributes:
        hashes: Conversation hash of each.
        sources: Name of each one's source.
    """

    hashes: Sequence[str]
    sources: Sequence[str]

    @classmethod
    def of(cls, split: PackedSplit) -> HeldoutDocuments:
        """Read what the split records; a later piece of a conversation is named ``<hash>+<tokens before it>``."""
        skipped = [int(count) for count in split.documents["skipped_tokens"]]
        hashes = [
            name + (f"+{count}" if count else "") for name, count in zip(split.document_hashes, skipped, strict=True)
        ]
        return cls(hashes, split.document_sources)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        summary: The short form.
        loss_sums: float64 [num_documents], nats; `WORST_LOSS` where it is not finite.
        num_targets: int64 [num_documents].
    """

    summary: HeldoutLoss
    loss_sums: npt.NDArray[np.float64]
    num_targets: npt.NDArray[np.int64]


class Evaluator:
    """Evaluates the held-out split on all copies of the model together."""

    def __init__(
        self,
        packs: Packs,
        documents: HeldoutDocuments,
        shape: MicroBatchShape,
        ranks: Ranks,
        *,
        micro_batch_packs: int,
        data_parallel: int,
        dp_rank: int,
        reports: bool,
    ) -> None:
        """Prepare.

        Args:
            packs: The held-out split.
            documents: What its documents are.
            shape: Shape of every micro-batch.
            ranks: The peers.
            micro_batch_packs: Packs in a micro-batch.
            data_parallel: Copies of the model.
            dp_rank: Which copy this rank belongs to.
            reports: This rank's numbers count for its copy; true on exactly one rank of each copy.
        """
        self._packs = packs
        self.documents = documents
        self._shape = shape
        self._ranks = ranks
        self._micro_batch_packs = micro_batch_packs
        self._data_parallel = data_parallel
        self._dp_rank = dp_rank
        self._reports = reports

    def run(self, engine: Evaluates, between: Callable[[], None]) -> Evaluation:
        """Evaluate; every rank calls this at the same time.

        Args:
            engine: What computes.
            between: Called before each micro-batch, on every rank equally often; raises to stop.
        """
        groups = self._groups()
        sums = np.zeros((3, len(self.documents.hashes)), np.float64)
        for turn in range(math.ceil(len(groups) / self._data_parallel)):
            between()
            index = turn * self._data_parallel + self._dp_rank
            arrays = [self._packs.pack(pack) for pack in groups[index]] if index < len(groups) else []
            found = engine.evaluate(join_packs(arrays, self._shape) if arrays else MicroBatch.empty(self._shape))
            ids = np.concatenate([pack.document_ids for pack in arrays] or [np.zeros(0, np.int64)])
            if self._reports:  # documents stand first in a micro-batch, padding behind them
                sums[0, ids] += found.document_loss_sums[: len(ids)]
                sums[1, ids] += found.document_num_targets[: len(ids)]
                sums[2, ids] += found.document_num_correct[: len(ids)]
        sums = self._ranks.sum(sums)
        return self._summarise(sums)

    def _groups(self) -> list[list[int]]:
        size = self._micro_batch_packs
        return [list(range(at, min(at + size, self._packs.num_packs))) for at in range(0, self._packs.num_packs, size)]

    def _summarise(self, sums: npt.NDArray[np.float64]) -> Evaluation:
        loss_sums, num_targets, num_correct = sums[0], sums[1].astype(np.int64), sums[2]
        total = int(num_targets.sum())
        loss = _finite(float(loss_sums.sum()) / total) if total else 0.0
        per_source = {}
        for source in sorted(set(self.documents.sources)):
            mask = np.array([name == source for name in self.documents.sources])
            targets = int(num_targets[mask].sum())
            if targets:
                per_source[source] = _finite(float(loss_sums[mask].sum()) / targets)
        summary = HeldoutLoss(
            loss=loss,
            perplexity=math.exp(loss) if loss < 700 else _LARGEST,
            accuracy=float(num_correct.sum()) / total if total else 0.0,
            num_targets=total,
            per_source=per_source,
        )
        return Evaluation(summary, np.nan_to_num(loss_sums, nan=WORST_LOSS, posinf=WORST_LOSS), num_targets)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else WORST_LOSS
