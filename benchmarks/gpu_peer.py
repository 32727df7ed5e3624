"""The peer of the GPU benchmarks: transformers' Mistral under FSDP2, started by ``bench_gpu.py`` under torchrun.

Flex attention on the document mask, compiled layers, full recompute, fused AdamW over fp32 weights. The block mask is
built once, uncompiled, and used again for every step, which favours the peer: transformers would compile and build it anew
for every forward. Rank 0 prints one JSON line. ``--small`` is a toy of the same form, on CPU processes where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import MistralConfig, MistralForCausalLM, masking_utils

from benchmarks import gpu_workload as work

NUM_TOKENS = 16_384


def main() -> None:
    """Time the peer with the accumulation of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--small", action="store_true")
    flags = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    ceiling = work.matmul_ceiling_flops() if on_gpu else None
    _build_mask_once()
    num_tokens = 256 if flags.small else NUM_TOKENS
    lengths = work.document_lengths(num_tokens, seed=0)
    model = _model(flags.layers, device, small=flags.small)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    tokens = torch.randint(0, model.config.vocab_size, (1, num_tokens), device=device)
    labels = tokens.clone()
    labels[:, ::2] = -100
    seconds = []
    for number in range(3):
        if on_gpu:
            if number == 1:
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(flags.accumulation):
            (model(input_ids=tokens, position_ids=positions, labels=labels).loss / flags.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        rate = num_tokens * flags.accumulation / min(seconds[1:])
        card = torch.cuda.get_device_name(device) if on_gpu else "cpu"
        flops = work.Flops(flags.layers, work.mean_attended_tokens([lengths]))
        values: dict[str, Any] = {
            "tokens_per_second_per_gpu": rate,
            "mfu": flops.mfu(rate, card) if on_gpu else None,
            "step_seconds_each": seconds,
            "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
            "matmul_ceiling_flops": ceiling,
            "card": card,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "world_size": dist.get_world_size(),
            "flags": vars(flags),
        }
        print("RESULT " + json.dumps(values), flush=True)
    dist.destroy_process_group()


def _build_mask_once() -> None:
    library: Any = masking_utils  # a name that it imports for itself
    build, known = library.create_block_mask, {}

    def create_block_mask(*arguments: Any, **options: Any) -> Any:
        options["_compile"] = False
        if "mask" not in known:
            known["mask"] = build(*arguments, **options)
        return known["mask"]

    library.create_block_mask = create_block_mask


TOY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}


def _model(num_layers: int, device: torch.device, *, small: bool) -> MistralForCausalLM:
    attention = "flex_attention" if device.type == "cuda" else "sdpa"
    fields: dict[str, Any] = {"attn_implementation": attention, **(TOY if small else {})}
    config = MistralConfig(
        num_hidden_layers=num_layers,
        sliding_window=None,
        vocab_size=500 if small else work.VOCABULARY,
        use_cache=False,
        **fields,
    )
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        if device.type == "cuda":
            layer.compile()
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    torch.manual_seed(dist.get_rank())
    for parameter in model.parameters():
        assert isinstance(parameter.data, DTensor), "fully_shard made every parameter one"
        parameter.data.to_local().normal_(std=0.02)
    head_dim = config.hidden_size // config.num_attention_heads
    inverse = 1 / (10_000 ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim))
    for module in model.modules():
        if "Rotary" in type(module).__name__:
            module.inv_freq = module.original_inv_freq = inverse
    return model


if __name__ == "__main__":
    main()
