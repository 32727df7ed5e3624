"""One rank of ``checkpoints.py``: trains with the product's engine, writes its state by our writer and by torch's.

Blocks of equal steps alternate between the ways; every way but "none" begins a checkpoint after the block's first step.
What a block takes longer than one without a checkpoint is what the checkpoint costs, wherever it hides.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from stagecoach.architectures.registry import ModelSpec
from stagecoach.recipe.train import TrainConfig
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach_train.attempts import Fence
from stagecoach_train.batch import Document, MicroBatchShape, micro_batch_of_documents
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.checkpointing import Retention
from stagecoach_train.engine import Engine
from stagecoach_train.parallel.gloo import register_gloo
from stagecoach_train.parallel.shares import topology_of
from stagecoach_train.ranks import Ranks
from stagecoach_train.train_state import TrainState

Wait = Callable[[], float]
"""Waits until a checkpoint is whole; returns the seconds from its beginning to then."""
Begin = Callable[[], Wait]

TRAINED = "trained/bench-0123456789abcdef/"
NUM_WARM_STEPS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its micro-batch and how many steps a block has.

    Attributes:
        spec: The model's dimensions, as keywords.
        layout: How the ranks share it.
        num_tokens: Tokens of a micro-batch.
        num_steps: Steps of a block, long enough for a checkpoint to be written while they run.
    """

    spec: dict[str, Any]
    layout: dict[str, int]
    num_tokens: int
    num_steps: int

    @property
    def num_ranks(self) -> int:
        """Processes of the layout."""
        return self.config.layout.world_size

    @property
    def config(self) -> TrainConfig:
        """The train section: fp32 weights and moments, one thread a rank."""
        return TrainConfig.model_validate({"steps": 1_000, "compute_dtype": "fp32", "layout": self.layout})


@dataclass(slots=True)
class Block:
    """What one block took, seconds: each step, the call that begins the checkpoint, until it is whole, and everything."""

    steps: list[float] = field(default_factory=list)
    stall: float = 0.0
    written: float = 0.0
    whole: float = 0.0


class Trainee:
    """An engine with random weights and documents, and every way to keep its state."""

    def __init__(self, case: Case, rank: int, meeting: Store, folder: Path) -> None:
        """Build engine and writers; the process group is initialised by now."""
        self.config, self.spec = case.config, ModelSpec(**case.spec)
        self.shape = MicroBatchShape(case.num_tokens, 16)
        self.rank, self.size, self.folder = rank, case.num_ranks, folder
        topology = topology_of(self.config)
        self.engine = Engine(
            self.config, self.spec, topology, torch.device("cpu"), num_micro_batches=1, shape=self.shape
        )
        torch.manual_seed(7)
        with torch.no_grad():
            for local in self.engine.model.parameters:
                _ = local.held_tensor.fill_(1.0) if "norm" in local.tensor.kind else local.held_tensor.normal_(std=0.02)
        self.ranks = Ranks(rank, self.size, meeting, 600.0)
        self.torch_group = dist.new_group(backend=register_gloo())
        self.num_steps_done = 0

    def writer(self, url: str) -> CheckpointWriter:
        """Return the product's writer into a store, which keeps the newest checkpoint."""
        store = open_store(url, Settings.from_environ())
        scratch = self.folder / f"scratch-{self.rank}"
        fence = Fence(store, TRAINED, 1)
        return CheckpointWriter(store, TRAINED, self.ranks, fence, self.spec, Retention(1, None, False), None, scratch)

    def step(self) -> float:
        """Train one step on documents of its own; returns its seconds."""
        random = np.random.default_rng(self.num_steps_done)
        length = self.shape.num_tokens // 8
        documents = [
            Document(random.integers(0, self.spec.vocab_size, length), np.arange(length) > 0) for _ in range(8)
        ]
        batch = micro_batch_of_documents(documents, self.shape)
        began = time.perf_counter()
        self.engine.train_step([batch], batch.num_targets, 1e-4)
        self.num_steps_done += 1
        return time.perf_counter() - began

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what this rank writes, under names of its own, as torch's checkpoints take it."""
        found: dict[str, torch.Tensor] = {}
        for local, shard in zip(self.engine.model.parameters, self.engine.optimizer.state, strict=True):
            if local.is_counted:
                kinds = {"weight": local.weight_shard, "exp_avg": shard.exp_avg, "exp_avg_sq": shard.exp_avg_sq}
                found |= {f"{self.rank}/{local.name}/{kind}": tensor.detach() for kind, tensor in kinds.items()}
        return found

    def block(self, num_steps: int, begin: Begin | None) -> Block:
        """Train a block; a checkpoint begins after its first step."""
        block = Block()
        dist.barrier()
        began = time.perf_counter()
        block.steps.append(self.step())
        wait = None
        if begin is not None:
            before = time.perf_counter()
            wait = begin()
            block.stall = time.perf_counter() - before
        block.steps += [self.step() for _ in range(num_steps - 1)]
        if wait is not None:
            block.written = wait()
        dist.barrier()
        block.whole = time.perf_counter() - began
        return block


def ways_of(trainee: Trainee, store_urls: dict[str, str]) -> dict[str, Begin | None]:
    """Return what begins a checkpoint, by way: none, ours into each store, torch's two."""
    tensors = trainee.tensors()

    def ours(writer: CheckpointWriter) -> Wait:
        writer.save(trainee.engine.state_pieces(), TrainState(step=trainee.num_steps_done))

        def wait() -> float:
            writer.wait()
            report = writer.check()
            assert report is not None, "a checkpoint that was written has its report"
            return report.total_seconds

        return wait

    def torch_writer() -> FileSystemWriter:
        return FileSystemWriter(trainee.folder / "torch")  # it syncs every file, as ours does

    def torch_save() -> Wait:
        began = time.perf_counter()
        save(tensors, storage_writer=torch_writer(), process_group=trainee.torch_group)
        seconds = time.perf_counter() - began
        return lambda: seconds

    def torch_async_save() -> Wait:
        began = time.perf_counter()
        ended: list[float] = []
        saving: Any = async_save(tensors, storage_writer=torch_writer(), process_group=trainee.torch_group)
        saving.add_done_callback(lambda _: ended.append(time.perf_counter()))

        def wait() -> float:
            saving.result()
            return ended[0] - began

        return wait

    writers = {way: functools.partial(ours, trainee.writer(url)) for way, url in store_urls.items()}
    return {"none": None, **writers, "torch_save": torch_save, "torch_async_save": torch_async_save}


def summary(blocks: dict[str, list[Block]]) -> dict[str, Any]:
    """Return the medians over the rounds, seconds by way.

    ``stall``: the call that begins the checkpoint, in which nothing is trained; ``written``: from that call until the
    checkpoint is whole on disk; ``extra``: the block, until the checkpoint is whole, less a block without one.
    """
    plain = statistics.median(block.whole for block in blocks["none"])
    found: dict[str, Any] = {
        "step": round(statistics.median(step for block in blocks["none"] for step in block.steps), 4)
    }
    for way in blocks:
        if way != "none":
            found[way] = {
                "stall": round(statistics.median(block.stall for block in blocks[way]), 4),
                "written": round(statistics.median(block.written for block in blocks[way]), 4),
                "extra": round(statistics.median(block.whole for block in blocks[way]) - plain, 4),
                "stalls": [round(block.stall, 4) for block in blocks[way]],
            }
    return found


def joined(case: Case, rank: int, port: int, folder: Path) -> Trainee:
    """Meet the other ranks and build this one's trainee."""
    torch.set_num_threads(1)
    meeting = TCPStore("127.0.0.1", port, case.num_ranks, rank == 0, timedelta(seconds=600), wait_for_workers=False)
    dist.init_process_group(register_gloo(), store=PrefixStore("group", meeting), rank=rank, world_size=case.num_ranks)
    return Trainee(case, rank, PrefixStore("control", meeting), folder)


def save_on_rank(
    case: Case, rank: int, port: int, folder: Path, store_urls: dict[str, str], num_rounds: int
) -> dict[str, Any]:
    """Train all blocks on this rank; returns ``summary``'s figures. torch's last checkpoint stays in ``folder``."""
    trainee = joined(case, rank, port, folder)
    for _ in range(NUM_WARM_STEPS):
        trainee.step()
    ways = ways_of(trainee, store_urls)
    blocks: dict[str, list[Block]] = {way: [] for way in ways}
    for _ in range(num_rounds):
        for way, begin in ways.items():
            if rank == 0:
                shutil.rmtree(folder / "torch", ignore_errors=True)
                os.sync()
            blocks[way].append(trainee.block(case.num_steps, begin))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trainee.tensors().values())
    dist.destroy_process_group()
    return {"mb_a_rank": round(num_bytes / 1e6, 1), **summary(blocks)}


def torch_resume_on_rank(case: Case, rank: int, port: int, folder: Path) -> float:
    """Load torch's checkpoint on the layout that wrote it; returns when the first step could begin, unix seconds."""
    trainee = joined(case, rank, port, folder)
    load(
        trainee.tensors(),
        storage_reader=FileSystemReader(folder / "torch"),
        process_group=trainee.torch_group,
    )
    dist.barrier()
    ready = time.time()
    trainee.step()
    dist.destroy_process_group()
    return ready
