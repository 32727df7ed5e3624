"""Hugging Face's Mistral under FSDP2 as a peer, with or without Liger's kernels.

Flex attention on the document mask, or flash-attn-4 with the documents' edges, and compiled layers. Mask and edges are made
once and used again for every step, which favours the peer: transformers would make them anew for every forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import MistralConfig, MistralForCausalLM, masking_utils

from benchmarks import gpu_workload as work
from benchmarks.gpu_peer import PeerOptions

TOY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}


@dataclass(frozen=True, slots=True)
class Transformers:
    """One micro-batch: a stream of documents, every second token trained."""

    model: Any
    version: str
    arguments: dict[str, Any]
    accumulation: int

    def forward_backward(self) -> None:
        """Add the micro-batch's gradients to those that are there."""
        (self.model(**self.arguments).loss / self.accumulation).backward()


def build(options: PeerOptions, lengths: list[int], device: torch.device) -> Transformers:
    """Make the model with random weights and the micro-batch that it sees."""
    found = version("transformers")
    if options.stack == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_mistral

        apply_liger_kernel_to_mistral()
        found = f"{version('liger-kernel')}, transformers {found}"
    _build_mask_once()
    model = _model(options, device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    tokens = torch.randint(0, model.config.vocab_size, (1, options.pack_tokens), device=device)
    labels = tokens.clone()
    labels[:, ::2] = -100
    arguments: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "labels": labels}
    if options.attention == "fa4":
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        arguments |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        arguments |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return Transformers(model, found, arguments, options.accumulation)


def _build_mask_once() -> None:
    library: Any = masking_utils  # a name that it imports for itself
    build, known = library.create_block_mask, {}

    def create_block_mask(*arguments: Any, **options: Any) -> Any:
        options["_compile"] = False
        if "mask" not in known:
            known["mask"] = build(*arguments, **options)
        return known["mask"]

    library.create_block_mask = create_block_mask


def _model(options: PeerOptions, device: torch.device) -> MistralForCausalLM:
    attention = "flash_attention_4" if options.attention == "fa4" else "flex_attention"
    attention = attention if device.type == "cuda" else "sdpa"
    fields: dict[str, Any] = {"attn_implementation": attention, **(TOY if options.small else {})}
    config = MistralConfig(
        num_hidden_layers=options.layers,
        sliding_window=None,
        vocab_size=500 if options.small else work.VOCABULARY,
        use_cache=False,
        **fields,
    )
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    model.train()
    if options.recompute == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]
    elif options.recompute != "none":
        raise ValueError(f"transformers knows full and no recompute, got {options.recompute}")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        # A compiled layer hands Liger's RMSNorm a number where its kernel expects a tensor, and memory is overwritten (0.8.2).
        if device.type == "cuda" and options.stack != "liger":
            layer.compile()
        fully_shard(layer, mp_policy=policy, reshard_after_forward=not options.resident)
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
