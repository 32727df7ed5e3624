"""The peers of the GPU benchmarks, started under torchrun: another stack trains the same model on the same documents.

``transformers`` and ``liger`` are Hugging Face's Mistral under FSDP2, the second with Liger's kernels; ``torchtitan`` is
its Llama 3 in Mistral's shapes. All keep fp32 weights and moments, cut over the ranks, and compute in bf16, in compiled
layers unless a stack's module says otherwise. Every micro-batch is the same one, and the best step counts; at 8,192 tokens
its documents are a little shorter than the mean of ours, so its attention is less work. Rank 0 prints one JSON line.
``--small`` is a toy of the same form, on CPU processes where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any, Protocol

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from benchmarks import gpu_workload as work

STACKS = {
    "transformers": "benchmarks.peer_transformers",
    "liger": "benchmarks.peer_transformers",
    "torchtitan": "benchmarks.peer_torchtitan",
}
RECOMPUTE = ("full", "selective", "none")
"""What a stack computes again in the backward pass; selective is torchtitan's own choice of operations."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The command line."""

    stack: str
    layers: int
    pack_tokens: int
    recompute: str
    attention: str
    resident: bool
    accumulation: int
    small: bool


class Peer(Protocol):
    """A model and how one micro-batch goes through it."""

    @property
    def model(self) -> FSDPModule:
        """Its sharded parameters are what the optimizer updates."""

    @property
    def version(self) -> str:
        """Version of the stack, and of what it stands on."""

    def forward_backward(self) -> None:
        """Add the micro-batch's gradients to those that are there."""


def main() -> None:
    """Time the stack of the command line."""
    options = _options()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    ceiling = work.matmul_ceiling_flops() if on_gpu else None
    lengths = work.document_lengths(options.pack_tokens, seed=0)
    peer: Peer = importlib.import_module(STACKS[options.stack]).build(options, lengths, device)
    gc.disable()  # as torchtitan does; a collection in the middle of a step is nobody's speed
    seconds = _step_seconds(peer, options, on_gpu=on_gpu)
    if dist.get_rank() == 0:
        rate = options.pack_tokens * options.accumulation / min(seconds[1:])
        card = torch.cuda.get_device_name(device) if on_gpu else "cpu"
        flops = work.Flops(options.layers, work.mean_attended_tokens([lengths]))
        values: dict[str, Any] = {
            "tokens_per_second_per_gpu": rate,
            "mfu": flops.mfu(rate, card) if on_gpu else None,
            "step_seconds_each": seconds,
            "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
            "matmul_ceiling_flops": ceiling,
            "card": card,
            "torch": torch.__version__,
            "stack": f"{options.stack} {peer.version}",
            "world_size": dist.get_world_size(),
            "flags": {name: getattr(options, name) for name in options.__slots__},
        }
        print("RESULT " + json.dumps(values), flush=True)
    dist.destroy_process_group()


def _options() -> PeerOptions:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", choices=tuple(STACKS), default="transformers")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--pack-tokens", type=int, default=16_384)
    parser.add_argument("--recompute", choices=RECOMPUTE, default="full")
    parser.add_argument("--attention", choices=("stock", "fa4"), default="stock", help="fa4: flash-attn-4")
    parser.add_argument(
        "--resident", action="store_true", help="keep whole weights and gradients from micro-batch to micro-batch"
    )
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--small", action="store_true")
    flags = parser.parse_args()
    if flags.small:
        flags.pack_tokens = 256
    return PeerOptions(**vars(flags))


def _step_seconds(peer: Peer, options: PeerOptions, *, on_gpu: bool) -> list[float]:
    """Return the seconds of three optimizer steps, the first of which compiles; the peak of memory is that of the others."""
    assert isinstance(peer.model, torch.nn.Module), "FSDP2 adds its methods to a module"
    parameters = list(peer.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    seconds = []
    for number in range(3):
        if on_gpu:
            if number == 1:
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(options.accumulation):
            if options.resident:
                is_last = index == options.accumulation - 1
                peer.model.set_requires_gradient_sync(is_last)
                peer.model.set_reshard_after_backward(is_last)
            peer.forward_backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
