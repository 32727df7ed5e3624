"""The gate of a release: whether a candidate may replace the released export, from recorded numbers alone.

    released   a: 40.0/20  b: 30.0/10  c: 9.0/5        loss sum / targets of each held-out document
    candidate  a: 38.0/20  b: 31.0/10         d: 7.0/5
    common     a, b: released (40+30)/(20+10) = 2.333, candidate (38+31)/30 = 2.300: not above by more than the tolerance

A document counts as common if its hash and its number of targets are equal: with another tokenizer the losses of a
token do not compare. A candidate with a loss that is not finite on any of its documents has diverged and is refused,
also as the first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stagecoach.metrics_file import WORST_LOSS
from stagecoach.recipe.export import GateConfig
from stagecoach.releases import Evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate says."""

    reasons: tuple[str, ...]
    """Why not; empty if the candidate passes."""
    num_common_documents: int | None
    """Held-out documents that both have seen; None without a released export."""
    candidate_loss: float | None
    """Nats a token on the common documents; on all of its own without a released export."""
    released_loss: float | None
    """The same of the released export."""
    right_answers: int
    """Tasks answered right."""
    num_tasks: int
    """Tasks asked."""

    def numbers(self) -> dict[str, object]:
        """Return what is recorded beside the reasons; JSON knows no infinity."""
        values = {name: value for name, value in asdict(self).items() if name != "reasons"}
        return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def judge(gate: GateConfig, candidate: Evidence, released: Evidence | None) -> Verdict:
    """Compare a candidate with the released export.

    Args:
        gate: The recipe's limits.
        candidate: Of the export that is offered.
        released: Of the export that serves now; None if nothing does.
    """
    tasks = [answer for answer in candidate.answers if "right" in answer]
    right = sum(bool(answer["right"]) for answer in tasks)
    reasons = [*_diverged(candidate), *_wrong_answers(gate, right, len(tasks))]
    if released is None:
        loss = _loss(candidate, sorted(candidate.documents))
        return _verdict(reasons, None, loss, None, right, len(tasks))
    common = [name for name, seen in candidate.documents.items() if _targets(released, name) == seen[1] > 0]
    ours, theirs = _loss(candidate, common), _loss(released, common)
    if len(common) < gate.min_common_documents:
        reasons.append(
            f"expected at least {gate.min_common_documents} held-out documents in common with the released export,"
            f" found {len(common)} of {len(candidate.documents)}"
        )
    elif ours is not None and theirs is not None and math.isfinite(ours) and ours > theirs + gate.max_loss_increase:
        reasons.append(
            f"held-out loss {ours:.4f} is above the released {theirs:.4f} by more than {gate.max_loss_increase:g}"
            f" on {len(common)} common documents"
        )
    return _verdict(reasons, len(common), ours, theirs, right, len(tasks))


def _diverged(candidate: Evidence) -> list[str]:
    bad = sum(not _is_loss(loss_sum) for loss_sum, _ in candidate.documents.values())
    if not bad:
        return []
    return [f"its held-out loss is not finite on {bad} of {len(candidate.documents)} documents: its training diverged"]


def _is_loss(loss_sum: float) -> bool:
    """Say whether a document's sum was measured; NaN compares as False, and records hold ``WORST_LOSS`` in its place."""
    return abs(loss_sum) < WORST_LOSS


def _wrong_answers(gate: GateConfig, right: int, num_tasks: int) -> list[str]:
    if gate.min_right_share is None:
        return []
    if not num_tasks:
        return ["no answers to tasks were recorded at this iteration; give train.tasks before the training begins"]
    if right < gate.min_right_share * num_tasks:
        return [f"{right} of {num_tasks} tasks answered right, expected a share of {gate.min_right_share:g}"]
    return []


def _targets(evidence: Evidence, name: str) -> int:
    return evidence.documents.get(name, (0.0, 0))[1]


def _loss(evidence: Evidence, names: Sequence[str]) -> float | None:
    """Return nats a token over these documents, infinity if one was not finite, None if they hold no target."""
    seen = [evidence.documents[name] for name in names]
    targets = sum(num_targets for _, num_targets in seen)
    if not targets:
        return None
    return math.fsum(loss for loss, _ in seen) / targets if all(_is_loss(loss) for loss, _ in seen) else math.inf


def _verdict(
    reasons: Sequence[str], common: int | None, ours: float | None, theirs: float | None, right: int, num_tasks: int
) -> Verdict:
    return Verdict(
        reasons=tuple(reasons),
        num_common_documents=common,
        candidate_loss=ours,
        released_loss=theirs,
        right_answers=right,
        num_tasks=num_tasks,
    )
