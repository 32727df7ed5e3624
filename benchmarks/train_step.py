"""How fast one training step is on this machine: tokens/s, MFU and memory of the product's own engine, random weights.

One GPU, 8 of Mistral-7B's 32 layers:

    python -m benchmarks.train_step --layers 8 --pack-tokens 16384 --recompute none

Two GPUs, the whole model, data parallel / tensor parallel:

    torchrun --nproc-per-node 2 -m benchmarks.train_step --dp 2 --pack-tokens 8192 --accumulate 4 --recompute selective
    torchrun --nproc-per-node 2 -m benchmarks.train_step --tp 2 --pack-tokens 16384 --accumulate 4 --recompute selective

Documents follow the study's length distribution (log-normal, mean about 1,000), half of the targets are trained,
every step has other documents. MFU = (6 N_mm + 6 L d S) tokens/s / peak, S = sum(l^2) / sum(l) over documents,
head counted on all tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu_profile import profiled
from benchmarks.gpu_workload import PEAK_FLOPS, document_lengths, matmul_ceiling_flops
from stagecoach.architectures.registry import ModelSpec
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.batch import Document, MicroBatch, MicroBatchShape, micro_batch_of_documents
from stagecoach_train.engine import Engine
from stagecoach_train.memory_plan import plan_memory
from stagecoach_train.parallel.gloo import register_gloo
from stagecoach_train.parallel.shares import topology_of


def mistral(layers: int, *, small: bool) -> ModelSpec:
    """Mistral-7B's shapes with fewer layers, or a toy of the same form for rehearsals."""
    dims: dict[str, Any] = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
    }
    if small:
        dims = {"hidden_size": 64, "intermediate_size": 192, "num_heads": 8, "num_kv_heads": 4, "head_dim": 8}
    vocab_size = 500 if small else 32_002
    return ModelSpec(
        family="mistral", num_layers=layers, vocab_size=vocab_size, norm_eps=1e-5, rope_theta=10_000.0, **dims
    )


def micro_batch(spec: ModelSpec, shape: MicroBatchShape, seed: int, *, lengths_seed: int) -> tuple[MicroBatch, float]:
    """Random documents, every second token trained; also returns S."""
    rng = np.random.default_rng(seed)
    lengths = document_lengths(shape.num_tokens, lengths_seed)
    documents = [Document(rng.integers(0, spec.vocab_size, n), np.arange(n) % 2 == 1) for n in lengths]
    return micro_batch_of_documents(documents, shape), sum(n * n for n in lengths) / shape.num_tokens


def flops_per_token(spec: ModelSpec, mean_length: float) -> float:
    """Forward and backward without recompute."""
    width, heads = spec.hidden_size, spec.num_heads * spec.head_dim
    layer = spec.qkv_rows * width + width * heads + 3 * width * spec.intermediate_size
    return 6 * (spec.num_layers * layer + spec.vocab_size * width) + 6 * spec.num_layers * heads * mean_length


def arguments(description: str) -> argparse.ArgumentParser:
    """Return the command line that describes model, layout and work."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--pack-tokens", type=int, default=16_384)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step on each data-parallel rank")
    parser.add_argument("--dp", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--recompute", default="selective", help="a mode, or MODE:N,MODE:N by layer count")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--dtype", default="bf16", help="what products are computed in")
    parser.add_argument("--moments", default="bf16")
    parser.add_argument("--fp8", action="store_true", help="8-bit products: an approximation")
    parser.add_argument("--async-tp", action="store_true")
    parser.add_argument("--regather", action="store_true")
    parser.add_argument("--no-copy-engine", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--same-lengths", action="store_true", help="the peer's two sets of document lengths")
    parser.add_argument("--memory-cap-gb", type=float, default=0.0)
    parser.add_argument("--layouts", type=int, default=0, help="also time that many packs, of one document and more")
    parser.add_argument("--small", action="store_true", help="toy model; also runs on a CPU")
    return parser


def config_of(args: argparse.Namespace) -> TrainConfig:
    """Turn the command line into a train section."""
    recompute: Any = args.recompute
    if ":" in recompute:
        parts = [part.split(":") for part in recompute.split(",")]
        recompute = tuple(mode for mode, count in parts for _ in range(int(count)))
    return TrainConfig.model_validate(
        {
            "matmul_precision": "fp8_tensorwise" if args.fp8 else "compute_dtype",
            "steps": 100, "packs_per_step": args.accumulate * args.dp, "micro_batch_packs": 1,
            "compute_dtype": args.dtype, "moments_dtype": args.moments, "recompute": recompute,
            "attention": args.attention, "async_tp": args.async_tp, "regather_activations": args.regather,
            "copy_engine_exchange": not args.no_copy_engine,
            "layout": {
                "data_parallel": args.dp, "tensor_parallel": args.tp, "pipeline_parallel": args.pp,
                "data_parallel_kind": "fsdp" if args.fsdp else "sharded_optimizer",
            },
        }
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took and gave."""

    seconds: float
    loss: float
    mean_attended_length: float


class Bench:
    """The engine of this rank and the documents of every step; every rank makes the same global batches."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Meet the other ranks, cap the memory, build the engine; its weights are zero."""
        self.args, config = args, config_of(args)
        self.on_gpu = torch.cuda.is_available()
        if config.layout.world_size > 1:
            dist.init_process_group("nccl" if self.on_gpu else register_gloo())
        rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = torch.device("cuda", rank % torch.cuda.device_count()) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
            if args.memory_cap_gb:
                total = torch.cuda.get_device_properties(self.device).total_memory
                torch.cuda.set_per_process_memory_fraction(args.memory_cap_gb * 1e9 / total, self.device)
        self.spec = mistral(args.layers, small=args.small)
        self.shape = MicroBatchShape.of(pack_tokens=args.pack_tokens, micro_batch_packs=1, max_documents_per_pack=64)
        self.engine = Engine(
            config, self.spec, topology_of(config), self.device, num_micro_batches=args.accumulate, shape=self.shape
        )

    def fill_randomly(self) -> None:
        """Norms 1, matrices normal; made on the device, because 7 billion numbers by numpy take minutes."""
        torch.manual_seed(7 + self.engine.mesh.at.tp)
        self.engine.optimizer.reset()
        with torch.no_grad():
            for local in self.engine.model.parameters:
                held = local.held_tensor
                _ = held.fill_(1.0) if "norm" in local.tensor.kind else held.normal_(std=0.02)

    def wait(self) -> None:
        """Wait until the GPU has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def step(self, number: int) -> Step:
        """Train on the documents of step ``number``: this data-parallel rank's share of the same batch on any layout."""
        args, at = self.args, self.engine.mesh.at
        seeds = [1_000 * number + index for index in range(args.accumulate * args.dp)]
        made = [
            micro_batch(self.spec, self.shape, seed, lengths_seed=seed % 2 if args.same_lengths else seed)
            for seed in seeds
        ]
        targets = sum(batch.num_targets for batch, _ in made)
        mine = [batch for batch, _ in made[at.dp * args.accumulate : (at.dp + 1) * args.accumulate]]
        self.wait()
        start = time.perf_counter()
        result = self.engine.train_step(mine, targets, 1e-5)
        self.wait()
        seconds = time.perf_counter() - start
        return Step(seconds, result.loss_sum / targets, sum(length for _, length in made) / len(made))


def main() -> None:
    """Measure one configuration and print one line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--result", type=Path, help="append the figures to this JSON lines file")
    args = parser.parse_args()
    bench = Bench(args)
    bench.fill_randomly()
    figures = measure(bench)
    if (dist.get_rank() if dist.is_initialized() else 0) == 0:
        print(json.dumps(figures), flush=True)
        if args.result:
            with args.result.open("a") as file:
                file.write(json.dumps(figures) + "\n")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def measure(bench: Bench) -> dict[str, Any]:
    """Warm up, then time steps with other documents each."""
    args, on_gpu = bench.args, bench.on_gpu
    first = bench.step(0)
    cold_start_seconds = process_age_seconds()
    bench.step(1)
    graphs = _num_graphs()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps = [bench.step(2 + number) for number in range(args.steps)]
    peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else None
    graphs = _num_graphs() - graphs
    layouts = measure_layouts(bench) if args.layouts else None
    num_ranks = args.dp * args.tp * args.pp
    mean_seconds = sum(step.seconds for step in steps) / len(steps)
    tokens = bench.shape.num_tokens * args.accumulate / (args.tp * args.pp)
    mean_length = sum(step.mean_attended_length for step in steps) / len(steps)
    name = torch.cuda.get_device_name(bench.device) if on_gpu else "cpu"
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), float("nan"))
    plan = plan_memory(bench.engine.config, bench.spec, pack_tokens=args.pack_tokens, capacity_bytes=None)
    kinds = profiled(lambda: bench.step(99)) if on_gpu else {}
    return {
        "device": name,
        "torch": torch.__version__,
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "tokens_per_second_per_gpu": round(tokens / mean_seconds, 1),
        "tokens_per_second": round(tokens * num_ranks / mean_seconds, 1),
        "mfu": round(flops_per_token(bench.spec, mean_length) * tokens / mean_seconds / peak, 4),
        "step_milliseconds": [round(step.seconds * 1e3, 1) for step in steps],
        "first_step_seconds": round(first.seconds, 1),
        "cold_start_seconds": round(cold_start_seconds, 1),
        "mean_attended_length": round(mean_length),
        "planned_gib": round(plan.peak_bytes / 2**30, 2),
        "plan_off_by": None if peak_bytes is None else round(plan.off_by(peak_bytes), 4),
        "matmul_tflops": round(matmul_ceiling_flops() / 1e12) if on_gpu and not args.small else None,
        "graphs_after_step_2": graphs,
        "losses": [round(step.loss, 4) for step in (first, *steps)],
        "async_tp_fusions": _fusions(),
        "layouts": layouts,
        "milliseconds_by_kind": kinds or None,
        **over_ranks(gathered({"peak_bytes": peak_bytes, **kinds})),
    }


def gathered(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank says, in rank order; a collective."""
    if not dist.is_initialized():
        return [mine]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return everybody


def over_ranks(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the highest peak of memory, the longest exposed communication, and how much longer than the mean rank the
    busiest one computes; None where there is nothing to measure it with.

    Examples:
        >>> over_ranks([{"peak_bytes": 2**30, "computing": 90.0, "exposed_communication": 4.0},
        ...             {"peak_bytes": 2**31, "computing": 110.0, "exposed_communication": 6.0}])
        {'peak_gib': 2.0, 'peak_gb': 2.15, 'imbalance': 0.1, 'exposed_communication_milliseconds': 6.0}
    """
    peaks = [rank["peak_bytes"] for rank in ranks if rank["peak_bytes"] is not None]
    computing = [rank["computing"] for rank in ranks if "computing" in rank]
    exposed = [rank["exposed_communication"] for rank in ranks if "exposed_communication" in rank]
    return {
        "peak_gib": round(max(peaks) / 2**30, 2) if peaks else None,
        "peak_gb": round(max(peaks) / 1e9, 2) if peaks else None,
        "imbalance": round(max(computing) * len(computing) / sum(computing) - 1, 4) if computing else None,
        "exposed_communication_milliseconds": max(exposed) if exposed else None,
    }


def measure_layouts(bench: Bench) -> dict[str, Any]:
    """Time packs cut into 1, 2, .. documents up to the most that a pack may have; nothing may be compiled for any."""
    args, spec, shape = bench.args, bench.spec, bench.shape
    graphs = _num_graphs()
    times, rates = [], []
    most = min(shape.num_documents, shape.num_tokens)
    for number in range(args.layouts):
        num_documents = 1 + number * (most - 1) // max(1, args.layouts - 1)
        rng = np.random.default_rng(number)
        edges = [0, *sorted(1 + rng.choice(shape.num_tokens - 1, num_documents - 1, replace=False)), shape.num_tokens]
        lengths = [int(end - start) for start, end in pairwise(edges)]
        batch = micro_batch_of_documents(
            [Document(rng.integers(0, spec.vocab_size, n), np.arange(n) % 2 == 1) for n in lengths], shape
        )
        bench.wait()
        start = time.perf_counter()
        bench.engine.train_step([batch] * args.accumulate, batch.num_targets * args.accumulate * args.dp, 1e-5)
        bench.wait()
        times.append(time.perf_counter() - start)
        rates.append(times[-1] / flops_per_token(spec, sum(n * n for n in lengths) / shape.num_tokens))
    return {
        "packs": args.layouts,
        "documents": [1, most],
        "graphs": _num_graphs() - graphs,
        "max_over_median_time": round(max(times) / float(np.median(times)), 3),
        "max_over_median_time_per_flop": round(max(rates) / float(np.median(rates)), 3),
    }


def process_age_seconds() -> float:
    """Return the seconds since this process was started, imports and the making of the model among them (Linux)."""
    started_ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime_seconds = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_seconds - started_ticks / os.sysconf("SC_CLK_TCK")


def _num_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _fusions() -> dict[str, int]:
    from stagecoach_train.parallel.async_tp import num_fusions

    return num_fusions()


if __name__ == "__main__":
    main()
