"""A training small enough to check by hand: packs made of numbers, and an engine that learns one weight with numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stagecoach.architectures.registry import ModelSpec, native_tensors
from stagecoach.formats.packed import PackArrays
from stagecoach_train.batch import IGNORED_TARGET, MicroBatch
from stagecoach_train.results import EvalResult, StatePiece, StepResult

SPEC = ModelSpec(
    family="llama",
    num_layers=1,
    hidden_size=8,
    intermediate_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=32,
    norm_eps=1e-5,
    rope_theta=1e4,
)


def pack_of(*documents: Sequence[int], pack_tokens: int = 8, first_id: int = 0) -> PackArrays:
    """A pack of documents whose every token but the first is trained; the rest is padding."""
    lengths = [len(document) for document in documents]
    unused = pack_tokens - sum(lengths)
    tokens = [token for document in documents for token in document] + [0] * unused
    trained = [place > 0 for length in lengths for place in range(length)] + [False] * unused
    all_lengths = [*lengths, unused] if unused else lengths
    return PackArrays(
        np.array(tokens, np.int32),
        np.concatenate([np.arange(n) for n in all_lengths]).astype(np.int32),
        np.array(trained),
        np.cumsum([0, *lengths[:-1]]).astype(np.int32),
        np.arange(first_id, first_id + len(documents)),
        sum(lengths),
    )


@dataclass
class FakeSplit:
    """What ``PackedSplit.open`` returns."""

    packs: list[PackArrays]

    @property
    def num_packs(self) -> int:
        return len(self.packs)

    def pack(self, index: int) -> PackArrays:
        return self.packs[index]

    @classmethod
    def numbered(cls, num_packs: int) -> FakeSplit:
        """Packs of two documents; pack i holds the tokens i + 1 only."""
        return cls([pack_of([i + 1] * 3, [i + 1] * 2, first_id=2 * i) for i in range(num_packs)])


@dataclass
class FakeEngine:
    """Learns nothing but a number: the sum of lr x target token over all steps, exactly reproducible."""

    on_step: Callable[[int], None] = lambda step: None
    not_finite_at: frozenset[int] = frozenset()
    weight: float = 0.0
    num_updates: int = 0
    steps: int = 0
    heldout_loss: float = 1.0
    seen: list[list[int]] = field(default_factory=list)

    def train_step(self, micro_batches: Sequence[MicroBatch | None], num_targets_in_step: int, lr: float) -> StepResult:
        targets = [int(t) for b in micro_batches if b is not None for t in b.targets_T if t != IGNORED_TARGET]
        self.seen.append(sorted(targets))
        self.steps += 1
        self.on_step(self.steps)
        if self.steps in self.not_finite_at:
            return StepResult(float("nan"), float("nan"), True)
        self.weight += lr * sum(targets) / num_targets_in_step
        self.num_updates += 1
        return StepResult(num_targets_in_step / self.num_updates, 1.0, False)

    def evaluate(self, batch: MicroBatch) -> EvalResult:
        starts = batch.cu_seqlens
        counts = [int((batch.targets_T[a:b] != IGNORED_TARGET).sum()) for a, b in itertools.pairwise(starts)]
        num = np.array(counts, np.int64)
        losses = np.array([n * self.heldout_loss / (1.0 + self.num_updates) if n else 0.0 for n in counts])
        correct = np.minimum(num, 1)  # one a document
        return EvalResult(float(losses.sum()), int(num.sum()), int(correct.sum()), losses, num, correct)

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        return [*prompt_ids[-1:], stop_ids[0]]

    def state_pieces(self) -> Iterator[StatePiece]:
        for tensor in native_tensors(SPEC):
            cols = (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
            values = np.full(tensor.shape, self.weight, np.float32)
            yield StatePiece(tensor.name, "weight", (0, tensor.shape[0]), cols, values)
