"""Puts one rank's training together: engine with its weights, data, checkpoints, evaluation, metrics; then the loop.

Everything that the loop needs is made here and nowhere else, so that the loop itself knows no files and no devices.
"""

from __future__ import annotations

import logging
import time

import torch

from stagecoach.architectures.registry import ModelSpec
from stagecoach.formats.packed import PackedSplit
from stagecoach.formats.tokenizer import ChatTokenizer
from stagecoach.parallel.topology import Coordinates, Topology
from stagecoach.progress import Progress
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach_train.attempts import Fence
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.checkpointing import Retention
from stagecoach_train.engine import Engine
from stagecoach_train.evaluation import Evaluator, HeldoutDocuments
from stagecoach_train.feed import StepFeed
from stagecoach_train.generate import Interview
from stagecoach_train.job import CHECKPOINT, Job, checked_input
from stagecoach_train.memory_plan import GIB, MemoryPlan
from stagecoach_train.metrics import MetricsStream
from stagecoach_train.parallel.shares import topology_of
from stagecoach_train.planning import TrainingPlan
from stagecoach_train.ranks import Ranks
from stagecoach_train.signals import StopRequest
from stagecoach_train.sinks import open_sinks
from stagecoach_train.sources import CheckpointSource, ShardSource
from stagecoach_train.throughput import peak_flops
from stagecoach_train.train_state import TrainState
from stagecoach_train.trainer import Hardware, Parts, Trainer

_log = logging.getLogger("stagecoach.train")


def assemble(job: Job, store: ObjectStore, ranks: Ranks, device: torch.device, stop: StopRequest) -> Trainer:
    """Build one rank's training.

    Args:
        job: What to train, with assignment and checked files.
        store: Where everything is kept.
        ranks: The peers.
        device: Where this rank computes.
        stop: Asked at every safe point.

    Raises:
        DataError: Some step would have no trained target, or inputs do not fit each other.
    """
    config, assignment = job.config, job.assignment
    assert assignment is not None, "the assignment is agreed on before anything is built"
    topology = topology_of(config)
    at = topology.coordinates(ranks.rank)
    shards = ShardSource(checked_input(store, job, "shards").path, (at.tp, at.pp))
    spec = shards.shards.spec
    packed = checked_input(store, job, "packed")
    train, heldout = PackedSplit.open(packed, "train"), PackedSplit.open(packed, "heldout")
    plan = TrainingPlan.of(config, spec, train, heldout, _gpu_memory_bytes(config, device, ranks))
    config = plan.config
    if ranks.leads:
        _log.info("%s", plan.table())
    feed = StepFeed(
        train,
        plan.numbers,
        plan.order,
        plan.shape,
        micro_batch_packs=plan.micro_batch_packs,
        data_parallel=topology.data_parallel,
        dp_rank=at.dp,
    )
    engine = Engine(config, spec, topology, device, num_micro_batches=plan.num_micro_batches, shape=plan.shape)
    loading_seconds = time.monotonic()
    state = _load(engine, job, store, shards)
    loading_seconds = time.monotonic() - loading_seconds
    metrics = _metrics(job, store) if ranks.leads else None
    return Trainer(
        Parts(
            config=config,
            spec=spec,
            order=plan.order,
            feed=feed,
            engine=engine,
            ranks=ranks,
            writer=_writer(job, store, ranks, spec, metrics),
            evaluator=_evaluator(heldout, plan, ranks, topology, at),
            interview=_interview(job, store),
            metrics=metrics,
            stop=stop,
            progress=Progress(Settings.from_environ().progress_file if ranks.leads else None),
            hardware=_hardware(device, topology.world_size, plan.memory),
            attempt=assignment.attempt,
            start_seconds={
                "load_seconds": loading_seconds,
                **({} if job.taken_unix_seconds is None else {"ready_seconds": time.time() - job.taken_unix_seconds}),
            },
        ),
        state,
    )


def _gpu_memory_bytes(config: TrainConfig, device: torch.device, ranks: Ranks) -> int | None:
    """Return the memory of the smallest GPU, the same on every rank, so that all choose the same plan."""
    if device.type != "cuda":
        return None
    own = torch.cuda.get_device_properties(device).total_memory
    if config.gpu_memory_gib is not None:
        own = min(own, int(config.gpu_memory_gib * GIB))
    (negative,) = ranks.largest([-float(own)])
    return int(-negative)


def _load(engine: Engine, job: Job, store: ObjectStore, shards: ShardSource) -> TrainState:
    """Give the engine its weights: the resumed checkpoint's, else those of the shards; returns the training's state."""
    assert job.assignment is not None, "see assemble"
    if job.assignment.resume is None:
        engine.load_weights(shards)
        return TrainState()
    source = CheckpointSource(checked_input(store, job, CHECKPOINT).path)
    engine.load_state(source, num_updates=source.state.num_updates)
    return source.state


def _writer(
    job: Job, store: ObjectStore, ranks: Ranks, spec: ModelSpec, metrics: MetricsStream | None
) -> CheckpointWriter:
    assert job.assignment is not None, "see assemble"
    config = job.config
    return CheckpointWriter(
        store,
        job.trained,
        ranks,
        Fence(store, job.trained, job.assignment.attempt),
        spec,
        Retention(config.keep_last, config.keep_every_steps, config.keep_best),
        job.assignment.resume,
        job.scratch / "checkpoints",
        before_commit=metrics.flush if metrics is not None else lambda: None,
    )


def _evaluator(
    heldout: PackedSplit, plan: TrainingPlan, ranks: Ranks, topology: Topology, at: Coordinates
) -> Evaluator | None:
    if heldout.num_packs == 0:
        if ranks.leads:
            _log.warning("there is no held-out split; nothing is evaluated and no checkpoint is the best")
        return None
    return Evaluator(
        heldout,
        HeldoutDocuments.of(heldout),
        plan.shape,
        ranks,
        micro_batch_packs=plan.micro_batch_packs,
        data_parallel=topology.data_parallel,
        dp_rank=at.dp,
        reports=at.tp == 0 and at.pp == 0,
    )


def _interview(job: Job, store: ObjectStore) -> Interview | None:
    if not job.config.prompts and not job.config.tasks:
        return None
    source = checked_input(store, job, "tokenizer")
    files = {name: source.read_bytes(name) for name in source.names()}
    return Interview(ChatTokenizer(files, source.prefix), job.config)


def _metrics(job: Job, store: ObjectStore) -> MetricsStream:
    assert job.assignment is not None, "see assemble"
    attempt, artifacts = job.assignment.attempt, Settings.from_environ().artifacts_dir
    sinks = open_sinks(job.config, job.scratch / "curves", artifacts, store, job.trained, attempt)
    return MetricsStream(store, job.trained, attempt, sinks)


def _hardware(device: torch.device, world_size: int, plan: MemoryPlan) -> Hardware:
    if device.type != "cuda":
        return Hardware()
    name = torch.cuda.get_device_name(device)
    peak = peak_flops(name)

    def memory_gib() -> float:
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)

    return Hardware(
        peak_flops=peak * world_size if peak else None,
        memory_gib=memory_gib,
        device=name,
        planned_gib=plan.peak_bytes / GIB,
    )
