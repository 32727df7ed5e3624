"""torchtitan's Llama 3 as a peer, in Mistral's shapes: its own model, recompute, compilation, FSDP2 and loss.

Its trainer is left out, which would read texts: document boundaries and positions are made here once, where torchtitan would
look for them in every micro-batch. It shards a model over several ranks only; the mesh that it is told of has one rank on
one GPU too, so that its weights are bf16 there as well, not cast again by autocast in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import activate_flash_attention_impl
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.config import JobConfig
from torchtitan.models.attention import VarlenMetadata
from torchtitan.models.llama3.infra.parallelize import parallelize_llama
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.models.llama3.model.model import Transformer

from benchmarks import gpu_workload as work
from benchmarks.gpu_peer import PeerOptions

TOY = {"dim": 64, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 500, "attn_type": "sdpa"}
MISTRAL = {
    "dim": work.HIDDEN,
    "n_heads": work.NUM_HEADS,
    "n_kv_heads": work.NUM_KV_HEADS,
    "vocab_size": work.VOCABULARY,
    "ffn_dim_multiplier": 1.3,  # of 2/3 x 4 x 4096, rounded up to a multiple of 1,024: 14,336
    "multiple_of": 1024,
    "attn_type": "varlen",
    "attn_mask_type": "block_causal",
}


@dataclass(frozen=True, slots=True)
class Torchtitan:
    """One micro-batch: a stream of documents, every second token trained."""

    model: Any
    version: str
    loss: Any
    arguments: dict[str, Any]
    labels: torch.Tensor
    num_targets: int

    def forward_backward(self) -> None:
        """Add the micro-batch's gradients to those that are there; as in torchtitan, logits are freed before."""
        logits = self.model(**self.arguments)
        loss = self.loss(logits, self.labels) / self.num_targets
        del logits
        loss.backward()


def build(options: PeerOptions, lengths: list[int], device: torch.device) -> Torchtitan:
    """Make the model with random weights and the micro-batch that it sees."""
    on_gpu = device.type == "cuda"
    config = JobConfig()
    config.training.seq_len = options.pack_tokens
    config.activation_checkpoint.mode = options.recompute
    config.activation_checkpoint.selective_ac_option = "op"
    config.compile.enable = on_gpu
    config.parallelism.fsdp_reshard_after_forward = "never" if options.resident else "default"
    if options.attention == "fa4":
        activate_flash_attention_impl("FA4")
    fields: dict[str, Any] = dict(TOY if options.small else MISTRAL, n_layers=options.layers)
    with torch.device("meta"):
        model = Transformer(TransformerModelArgs(max_seq_len=options.pack_tokens, norm_eps=1e-5, **fields))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    model = parallelize_llama(model, _data_parallel(mesh), config)
    if not on_gpu:  # gloo cannot multiply while it adds, as torchtitan asks of NCCL
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        model.init_weights(buffer_device=device)
    model.train()
    tokens = torch.randint(0, fields["vocab_size"], (1, options.pack_tokens), device=device)
    labels = tokens.clone()
    labels[:, ::2] = -100
    arguments: dict[str, Any] = {"tokens": tokens}
    if fields["attn_type"] == "varlen":
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        arguments["attention_masks"] = VarlenMetadata(ends, ends, max(lengths), max(lengths))
        arguments["positions"] = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    num_targets = int((labels != -100).sum()) * options.accumulation * dist.get_world_size()
    loss = build_cross_entropy_loss(config)
    return Torchtitan(model, version("torchtitan"), loss, arguments, labels, num_targets)


def _data_parallel(mesh: Any) -> Any:
    """What `parallelize_llama` asks of torchtitan's ParallelDims, which would leave FSDP out on one rank."""
    return SimpleNamespace(
        seq_len_divisor=1,
        tp_enabled=False,
        cp_enabled=False,
        pp_enabled=False,
        fsdp_enabled=True,
        dp_replicate_enabled=False,
        get_mesh=lambda _names: mesh,
    )
