"""The training loop: poll, step, evaluate, save; the same on every rank, with rank 0 speaking for all.

    start -> (evaluate, ask) -> [ poll -> step -> evaluate? -> save? ] x steps -> save -> wait for the last commit
                                   |
                                   +-- stop asked for (agreed by all ranks): save, wait, exit 75

A stop is also looked for between the micro-batches of an evaluation and between two questions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import DataError, InterruptedWithProgress, StoreError
from stagecoach.progress import Progress
from stagecoach.recipe.train import Cadence, TrainConfig
from stagecoach_train.batch import MicroBatch
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.data import DataOrder
from stagecoach_train.evaluation import Evaluator
from stagecoach_train.feed import StepData, StepFeed
from stagecoach_train.generate import Interview
from stagecoach_train.metrics import MetricsStream, console_line
from stagecoach_train.ranks import Ranks
from stagecoach_train.results import EvalResult, StatePiece, StepResult
from stagecoach_train.schedule import learning_rate
from stagecoach_train.signals import StopRequest
from stagecoach_train.throughput import flops
from stagecoach_train.train_state import TrainState

_log = logging.getLogger("stagecoach.train")

NAMED_PACKS = 64
"""Packs of a skipped step that a sentence names; its record in the metrics has them all."""


class TrainingEngine(Protocol):
    """What the loop asks of ``stagecoach_train.engine.Engine``; tests give a small one of their own."""

    num_updates: int

    def train_step(self, micro_batches: Sequence[MicroBatch | None], num_targets_in_step: int, lr: float) -> StepResult:
        """Do one optimizer step."""

    def evaluate(self, batch: MicroBatch) -> EvalResult:
        """Return the loss of one micro-batch."""

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Return the greedy continuation."""

    def state_pieces(self) -> Iterator[StatePiece]:
        """Return what this rank writes into a checkpoint."""


class _LeaveEarly(Exception):
    """All ranks agreed to stop; carries rank 0's reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What the metrics say about the device.

    Attributes:
        peak_flops: Of all ranks together; None where it is unknown.
        memory_gib: Returns the highest use so far; None where there is none to ask.
        device: Name of the GPU; None on CPU.
        planned_gib: What the memory plan says of the fullest rank.
    """

    peak_flops: float | None = None
    memory_gib: Callable[[], float | None] = lambda: None
    device: str | None = None
    planned_gib: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the loop is put together from."""

    config: TrainConfig
    spec: ModelSpec
    order: DataOrder
    feed: StepFeed
    engine: TrainingEngine
    ranks: Ranks
    writer: CheckpointWriter
    evaluator: Evaluator | None
    interview: Interview | None
    metrics: MetricsStream | None
    stop: StopRequest
    progress: Progress
    hardware: Hardware
    attempt: int
    start_seconds: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """One rank's loop."""

    def __init__(self, parts: Parts, state: TrainState) -> None:
        """Go on from ``state``: the resumed one, or a fresh one."""
        self._parts = parts
        self._state = state
        self._unsaved = False
        self._num_steps = parts.order.num_steps
        self._last_report_seconds = time.monotonic()

    def run(self) -> TrainState:
        """Train to the end and return the final state.

        Raises:
            InterruptedWithProgress: A stop was asked for; everything done is saved.
            DataError: Too many steps had a gradient that was not finite.
        """
        parts = self._parts
        try:
            self._start()
            while self._state.step < self._num_steps:
                self._poll()
                self._step()
                self._after_step()
            if self._unsaved:
                self._save()
            self._wait_for_commit()
        except _LeaveEarly as leaving:
            self._leave(str(leaving))
        except BaseException:
            self._close_metrics_quietly()
            raise
        finally:
            parts.feed.close()
        self._record("end", last_loss=self._state.last_loss)
        if parts.metrics is not None:
            parts.metrics.close()
        return self._state

    def _close_metrics_quietly(self) -> None:
        """Store the metrics of a run that fails or stops if that is possible; why it ends is what matters."""
        if self._parts.metrics is None:
            return
        try:
            self._parts.metrics.close(patience_seconds=0)
        except StoreError as error:
            _log.warning("the last metrics, and curves, were not stored: %s", error)

    def _start(self) -> None:
        parts, state = self._parts, self._state
        self._record(
            "start",
            attempt=parts.attempt,
            steps=self._num_steps,
            num_packs=parts.order.num_packs,
            packs_per_step=parts.order.packs_per_step,
            layout=parts.config.layout.model_dump(),
            **{name: round(seconds, 3) for name, seconds in parts.start_seconds.items()},
            device=parts.hardware.device,
        )
        if parts.ranks.leads and state.step:
            _log.info("going on after step %d of %d", state.step, self._num_steps)
        if parts.ranks.leads and "ready_seconds" in parts.start_seconds:
            _log.info(
                "ready %.1f s after the attempt was taken, %.1f s of it to load weights and state",
                parts.start_seconds["ready_seconds"],
                parts.start_seconds["load_seconds"],
            )
        # Also after a stop that came in the middle of an evaluation: the checkpoint then lacks its result.
        self._evaluate_if_due(is_saved=True)

    def _poll(self) -> None:
        """Leave if any rank was asked to stop; the safe point between two pieces of work. A collective."""
        parts = self._parts
        self._report_saved()
        fenced, stopping = parts.ranks.largest([parts.writer.fenced is not None, parts.stop.reason is not None])
        if fenced:
            self._refuse_fenced()
        if stopping:
            raise _LeaveEarly(parts.stop.reason or "another rank was asked to stop")

    def _wait_for_commit(self) -> None:
        """Wait until the last checkpoint is committed, or refused; a collective."""
        self._parts.writer.wait()
        self._report_saved()
        (fenced,) = self._parts.ranks.largest([self._parts.writer.fenced is not None])
        if fenced:
            self._refuse_fenced()

    def _refuse_fenced(self) -> None:
        self._close_metrics_quietly()
        raise InterruptedWithProgress(self._parts.writer.fenced or "train: another attempt has taken over")

    def _step(self) -> None:
        parts, state = self._parts, self._state
        started_seconds = time.monotonic()
        data, waited_seconds = parts.feed.get(state.step)
        lr = learning_rate(parts.config, state.step, self._num_steps)
        result = parts.engine.train_step(data.micro_batches, data.num_targets, lr)
        seconds = time.monotonic() - started_seconds
        parts.stop.expendable = False
        loss = result.loss_sum / data.num_targets
        state.step += 1
        state.num_updates = parts.engine.num_updates
        state.tokens += data.num_tokens
        state.targets += data.num_targets
        state.train_seconds += seconds
        if not result.skipped:
            state.first_loss = loss if state.first_loss is None else state.first_loss
            state.last_loss = loss
        self._unsaved = True
        self._report_step(data, result, loss, lr, seconds, waited_seconds)
        if result.skipped:
            self._count_skipped(data)

    def _count_skipped(self, data: StepData) -> None:
        skipped = self._state.skipped_steps
        skipped.append(self._state.step)
        packs = ", ".join(map(str, data.packs[:NAMED_PACKS]))
        if len(data.packs) > NAMED_PACKS:
            where = f"metrics/attempt-{self._parts.attempt:04d}-*.jsonl of the output"
            packs += f" and {len(data.packs) - NAMED_PACKS} more, all in {where}"
        _log.warning("step %d skipped: its gradient is not finite (packs %s)", self._state.step, packs)
        if len(skipped) > self._parts.config.non_finite_step_budget:
            raise DataError(
                f"train: the gradient of {len(skipped)} steps was not finite, the last one in step {self._state.step}"
                f" (packs {packs}); look at these conversations, lower train.lr, or raise train.non_finite_step_budget"
                f" above {self._parts.config.non_finite_step_budget}"
            )

    def _after_step(self) -> None:
        at_the_end = self._state.step == self._num_steps
        is_saved = at_the_end or self._due(self._parts.config.save_every_steps)
        self._evaluate_if_due(is_saved)
        if at_the_end:
            self._compare_memory()
        if is_saved:
            self._save()

    def _due(self, cadence: Cadence) -> bool:
        step = self._state.step
        if cadence is None:
            return False
        if cadence == "epoch":
            before, now = (self._parts.order.epoch_of_step(done) for done in (step - 1, step))
            return math.floor(now) > math.floor(before)
        return step % cadence == 0

    def _evaluate_if_due(self, is_saved: bool) -> None:
        step = self._state.step
        at_an_end = step in (0, self._num_steps)
        if at_an_end or self._due(self._parts.config.evaluate_every_steps):
            self._evaluate(at_an_end, is_saved)

    def _evaluate(self, at_an_end: bool, is_saved: bool) -> None:
        """Evaluate and ask, unless the resumed state already holds the results of this step."""
        parts, state = self._parts, self._state
        step = state.step
        if parts.evaluator is not None and step not in state.heldout:
            started_seconds = time.monotonic()
            found = parts.evaluator.run(parts.engine, self._poll)
            state.heldout[step] = found.summary
            self._unsaved = step > 0
            documents = [
                [name, round(float(loss), 9), int(targets)]
                for name, loss, targets in zip(
                    parts.evaluator.documents.hashes, found.loss_sums, found.num_targets, strict=True
                )
            ]
            seconds = time.monotonic() - started_seconds
            self._record("evaluation", **asdict(found.summary), seconds=round(seconds, 3), documents=documents)
            if parts.ranks.leads:
                _log.info(
                    "held-out loss %.4f, accuracy %.1f %% (step %d)",
                    found.summary.loss,
                    100 * found.summary.accuracy,
                    step,
                )
        # Only what is saved can be the best checkpoint; the best of those before has its answers. Step 0 has no checkpoint.
        is_best = is_saved and state.best_step({*state.answers, step} - {0}) == step
        if parts.interview is not None and step not in state.answers and (at_an_end or is_best):
            state.answers[step] = parts.interview.run(parts.engine, self._poll)
            self._unsaved = step > 0
            self._record("answers", answers=state.answers[step])

    def _compare_memory(self) -> None:
        """Say how far the memory plan was from the highest use on any rank; a collective where memory is measured."""
        parts, own = self._parts, self._parts.hardware.memory_gib()
        if own is None or parts.hardware.planned_gib is None:
            return
        (measured_gib,) = parts.ranks.largest([own])
        memory = {
            "planned_gib": round(parts.hardware.planned_gib, 3),
            "measured_gib": round(measured_gib, 3),
            "off_by": round(parts.hardware.planned_gib / measured_gib - 1, 4),
            "micro_batches": parts.feed.num_micro_batches,
        }
        self._state.memory = memory
        self._record("memory", **memory)
        if parts.ranks.leads:
            _log.info(
                "memory of the fullest rank: %.2f GiB planned, %.2f GiB measured (off by %+.1f %%)",
                parts.hardware.planned_gib,
                measured_gib,
                100 * memory["off_by"],
            )

    def _save(self) -> None:
        parts = self._parts
        parts.writer.save(parts.engine.state_pieces(), self._state)
        self._unsaved = False

    def _leave(self, reason: str) -> None:
        """Save what is not saved, wait for the commit, and end with 75.

        Raises:
            InterruptedWithProgress: Always.
        """
        parts, state = self._parts, self._state
        if parts.ranks.leads:
            _log.info("stopping after step %d of %d: %s", state.step, self._num_steps, reason)
        if self._unsaved:
            self._save()
        self._wait_for_commit()
        self._close_metrics_quietly()
        raise InterruptedWithProgress(
            f"train: stopped after step {state.step} of {self._num_steps} ({reason}), everything is saved;"
            " run again to go on"
        )

    def _report_saved(self) -> None:
        while (report := self._parts.writer.check()) is not None:
            self._parts.stop.save_seconds = report.total_seconds
            self._record(
                "checkpoint",
                iteration=report.iteration,
                size_bytes=report.size_bytes,
                stall_seconds=round(report.stall_seconds, 4),
                total_seconds=round(report.total_seconds, 4),
            )
            if self._parts.ranks.leads:
                _log.info(
                    "checkpoint of step %d: %.1f MB a rank, training stood still for %.2f s, committed after %.2f s",
                    report.iteration,
                    report.size_bytes / 1e6,
                    report.stall_seconds,
                    report.total_seconds,
                )

    def _report_step(
        self, data: StepData, result: StepResult, loss: float, lr: float, seconds: float, waited_seconds: float
    ) -> None:
        parts, state = self._parts, self._state
        now_seconds = time.monotonic()
        elapsed_seconds, self._last_report_seconds = now_seconds - self._last_report_seconds, now_seconds
        if not parts.ranks.leads:
            return
        peak = parts.hardware.peak_flops
        used = flops(parts.spec, data.num_tokens, data.num_keys)
        values: dict[str, Any] = {
            "loss": _finite(loss),
            "lr": lr,
            "grad_norm": _finite(result.grad_norm),
            "epoch": round(parts.order.epoch_of_step(state.step), 6),
            "tokens": data.num_tokens,
            "targets": data.num_targets,
            "seconds": round(seconds, 6),
            "elapsed_seconds": round(elapsed_seconds, 6),
            "data_wait_seconds": round(waited_seconds, 6),
            "tokens_per_second": round(data.num_tokens / seconds, 3),
            "targets_per_second": round(data.num_targets / seconds, 3),
            "mfu": round(used / seconds / peak, 6) if peak else None,
            "memory_gib": parts.hardware.memory_gib(),
            "skipped": result.skipped,
            **({"packs": data.packs} if result.skipped else {}),
        }
        self._record("step", **values)
        line = console_line(
            {"step": state.step, **values, "loss": loss, "grad_norm": result.grad_norm}, self._num_steps
        )
        if state.step % parts.config.log_every_steps == 0 or state.step == self._num_steps:
            _log.info("%s", line)
        parts.progress.update(
            state.step, self._num_steps, f"loss {loss:.3f}, {values['tokens_per_second']:,.0f} tokens/s"
        )

    def _record(self, kind: str, **values: Any) -> None:
        if self._parts.metrics is not None:
            self._parts.metrics.write(kind, self._state.step, **values)


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
