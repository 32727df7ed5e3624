"""A checkpoint of one layout resumed in another: both then give the loss of one more step, on the same documents.

    torchrun --nproc-per-node 4 -m benchmarks.layout_change --store DIR --tp 4 --accumulate 4           trains 2 steps, saves
    torchrun --nproc-per-node 4 -m benchmarks.layout_change --store DIR --dp 4 --fsdp --accumulate 1    resumes

``accumulate`` x ``dp`` has to be the same in both. Started by ``bench_gpu.py``; rank 0 prints one JSON line.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from benchmarks.train_step import Bench, arguments
from stagecoach.storage.local import LocalStore
from stagecoach_train.attempts import Fence
from stagecoach_train.checkpoint_writer import CheckpointWriter
from stagecoach_train.checkpointing import Retention, find_newest_intact
from stagecoach_train.ranks import Ranks
from stagecoach_train.sources import CheckpointSource
from stagecoach_train.train_state import TrainState

TRAINED = "trained/layouts-0123456789abcdef/"
NUM_STEPS = 2


def save(bench: Bench, store: LocalStore, ranks: Ranks) -> float:
    """Write the engine's state as a training does; returns the bytes of this rank."""
    scratch = store.root / f"scratch-{ranks.rank}"
    fence, retention = Fence(store, TRAINED, 1), Retention(1, None, False)
    writer = CheckpointWriter(store, TRAINED, ranks, fence, bench.spec, retention, None, scratch)
    writer.save(bench.engine.state_pieces(), TrainState(step=NUM_STEPS, num_updates=bench.engine.num_updates))
    writer.wait()
    report = writer.check()
    assert report is not None, "a checkpoint that was written has its report"
    return report.size_bytes


def main() -> None:
    """Save or resume, take one more step, print its loss."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--store", type=Path, required=True)
    flags = parser.parse_args()
    bench = Bench(flags)
    world = dist.get_world_size()
    meeting = dist.distributed_c10d._get_default_store()
    ranks = Ranks(dist.get_rank(), world, PrefixStore("control", meeting), 600.0)
    store = LocalStore(flags.store)
    stored = find_newest_intact(store, TRAINED, flags.store / f"checked-{ranks.rank}")
    size_bytes = None
    if stored is None:
        bench.fill_randomly()
        for number in range(NUM_STEPS):
            bench.step(number)
        size_bytes = save(bench, store, ranks)
    else:
        source = CheckpointSource(lambda name: stored.paths[name])
        bench.engine.load_state(source, num_updates=source.state.num_updates)
    losses = [bench.step(NUM_STEPS + number).loss for number in range(2)]
    if ranks.leads:
        gib = None if size_bytes is None else round(size_bytes * world / 2**30, 2)
        print(json.dumps({"resumed": stored is not None, "losses": losses, "checkpoint_gib": gib}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
