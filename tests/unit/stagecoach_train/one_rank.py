"""One attempt of a training on one rank: the real loop, checkpoints and metrics around an engine made of numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch._C._distributed_c10d import HashStore

from stagecoach.progress import NO_PROGRESS
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.attempts import Fence
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.checkpointing import Retention, committed_checkpoints, find_newest_intact
from stagecoach_train.data import DataOrder
from stagecoach_train.evaluation import Evaluator, HeldoutDocuments
from stagecoach_train.feed import PackNumbers, StepFeed
from stagecoach_train.metrics import MetricsStream
from stagecoach_train.ranks import Ranks
from stagecoach_train.signals import StopRequest
from stagecoach_train.train_state import TrainState
from stagecoach_train.trainer import Hardware, Parts, Trainer
from tests.unit.stagecoach_train.loop_fakes import SPEC, FakeEngine, FakeSplit

TRAINED = "trained/tiny-0123456789abcdef/"
SHAPE = MicroBatchShape(num_tokens=8, num_documents=4)


def config(**values: object) -> TrainConfig:
    """10 steps of 4 packs; saved and evaluated every 3."""
    given = {"steps": 10, "packs_per_step": 4, "save_every_steps": 3, "evaluate_every_steps": 3, **values}
    return TrainConfig.model_validate(given)


class OneRank:
    """One attempt of a training in memory; ``train`` may be called once."""

    def __init__(self, store: MemoryStore, scratch: Path, attempt: int = 1, engine: FakeEngine | None = None) -> None:
        self.store, self.scratch, self.attempt = store, scratch, attempt
        self.engine = engine or FakeEngine()
        self.stop = StopRequest()
        self.hardware = Hardware()
        self.progress = NO_PROGRESS
        self.interview: Any = None

    def train(self, settings: TrainConfig) -> TrainState:
        ranks = Ranks(0, 1, HashStore(), 10.0)
        packs, heldout = FakeSplit.numbered(5), FakeSplit.numbered(3)
        order = DataOrder.of(settings, packs.num_packs)
        numbers = PackNumbers(np.ones(5), np.full(5, 3), np.full(5, 5), np.full(5, 9))
        stored = find_newest_intact(self.store, TRAINED, self.scratch / "resume")
        state = TrainState() if stored is None else stored.state
        if stored is not None:
            self.load(stored.paths)
        parts = Parts(
            config=settings,
            spec=SPEC,
            order=order,
            feed=StepFeed(packs, numbers, order, SHAPE, micro_batch_packs=1, data_parallel=1, dp_rank=0),
            engine=self.engine,
            ranks=ranks,
            writer=CheckpointWriter(
                self.store,
                TRAINED,
                ranks,
                Fence(self.store, TRAINED, self.attempt),
                SPEC,
                Retention(settings.keep_last, settings.keep_every_steps, settings.keep_best),
                None if stored is None else stored.ref,
                self.scratch / "checkpoints",
            ),
            evaluator=Evaluator(
                heldout,
                HeldoutDocuments([f"hash{i}" for i in range(6)], ["a", "b"] * 3),
                SHAPE,
                ranks,
                micro_batch_packs=1,
                data_parallel=1,
                dp_rank=0,
                reports=True,
            ),
            interview=self.interview,
            metrics=MetricsStream(self.store, TRAINED, self.attempt),
            stop=self.stop,
            progress=self.progress,
            hardware=self.hardware,
            attempt=self.attempt,
        )
        return Trainer(parts, state).run()

    def load(self, paths: Mapping[str, Path]) -> None:
        """What ``Engine.load_state`` does."""
        from stagecoach_train.sources import CheckpointSource

        source = CheckpointSource(lambda name: paths[name])
        self.engine.weight = float(source("final_norm.weight", "weight", (0, 1), None)[0])
        self.engine.num_updates = source.state.num_updates


def iterations(store: MemoryStore) -> list[tuple[int, int]]:
    return [(ref.iteration, ref.attempt) for ref in committed_checkpoints(store, TRAINED)]


def stopping_at(step: int) -> Callable[[OneRank], None]:
    def arm(run: OneRank) -> None:
        run.engine.on_step = lambda now: run.stop.request("SIGTERM arrived") if now == step else None

    return arm
