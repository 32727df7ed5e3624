"""The order in which parallelism is laid on the single-device model, in one place.

Step by step:

    1. tensor      every native tensor's slice for this rank becomes a parameter
    2. sequence    blocks get the exchange that joins and splits tokens around their products
    3. recompute   each layer's function keeps only what its mode says
    4. compile     each layer's function becomes one graph (GPU)
    5. pipeline    layers are gathered into this rank's stages
    6. data        stages are sharded (fsdp), or hooks reduce their gradients (sharded_optimizer)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from stagecoach.architectures.registry import ModelSpec, TensorSpec, native_tensors
from stagecoach.errors import ConfigError
from stagecoach.parallel.fp8_sizes import check_fp8_sizes
from stagecoach.parallel.slicing import LocalTensor, layers_of_stage, local_rectangles
from stagecoach.recipe.train import RecomputeMode, TrainConfig
from stagecoach_train.loss import VocabularyShard
from stagecoach_train.model import fp8
from stagecoach_train.model.attention import Backend
from stagecoach_train.model.block_runner import BlockRunner, RunOptions
from stagecoach_train.model.blocks import BlockDims, Product
from stagecoach_train.model.kernels import flash4_problem
from stagecoach_train.model.transformer import RunBlock, Stage
from stagecoach_train.optimizer import DTYPES
from stagecoach_train.parallel.data_parallel import Gradients, ResidentWeights
from stagecoach_train.parallel.fsdp import ShardedWeights, shard_stages
from stagecoach_train.parallel.mesh import Mesh
from stagecoach_train.parallel.parameters import LocalParameter
from stagecoach_train.parallel.shares import rank_layout, shard_rows
from stagecoach_train.parallel.tensor_parallel import TensorParallel, tensor_parallel
from stagecoach_train.parallel.weights_apart import WeightsApart


@dataclass(frozen=True, slots=True)
class ParallelModel:
    """This rank's part of the model.

    Attributes:
        stages: One for each virtual stage, in the order of their layers.
        parameters: All of this rank's parameters.
        gradients: Where their gradients gather.
        exchange: What tensor-parallel ranks tell each other.
        apart: Collects the weights' half of a backward pass for a zero-bubble pipeline; None without one.
    """

    stages: list[Stage]
    parameters: list[LocalParameter]
    gradients: Gradients
    exchange: TensorParallel
    apart: WeightsApart | None


def parallelize(
    config: TrainConfig,
    spec: ModelSpec,
    mesh: Mesh,
    device: torch.device,
    recompute: tuple[RecomputeMode, ...],
    *,
    num_micro_batches: int,
    compile_backend: str | None,
) -> ParallelModel:
    """Build this rank's part of the model, weights zero.

    Args:
        config: The train section.
        spec: The model's dimensions.
        mesh: This rank's place and groups.
        device: Where the weights lie.
        recompute: One mode a layer, by global layer number.
        num_micro_batches: Micro-batches a step on each data-parallel rank.
        compile_backend: torch.compile's backend for the blocks; None runs them eagerly.
    """
    layout = config.layout
    cut = local_rectangles(spec, rank_layout(config), mesh.at.tp, mesh.at.pp)
    exchange = tensor_parallel(mesh.tp_constants, sequence_parallel=layout.sequence_parallel)
    dtype = weights_dtype(config, mesh)
    weights = {local.name: nn.Parameter(torch.zeros(local.local_shape, dtype=dtype, device=device)) for local in cut}
    apart = WeightsApart() if layout.zero_bubble else None
    runner = _block_runner(config, spec, exchange, device, compile_backend, apart)
    stages = _stages(
        config, spec, mesh, weights, _vocabulary(cut, exchange), lambda layer: runner.for_mode(recompute[layer])
    )
    is_sharded = layout.data_parallel_kind == "fsdp" and mesh.dp is not None
    if is_sharded and mesh.dp is not None:
        shard_stages(stages, mesh.dp, device, DTYPES[config.compute_dtype])
    parameters = _local_parameters(config, spec, mesh, stages, cut, is_sharded=is_sharded)
    gradients = _gradients(
        config, mesh, parameters, stages, device, is_sharded=is_sharded, num_micro_batches=num_micro_batches
    )
    return ParallelModel(stages, parameters, gradients, exchange, apart)


def weights_dtype(config: TrainConfig, mesh: Mesh) -> torch.dtype:
    """Return the dtype in which parameters are held: compute dtype where weights are resident, else the masters'."""
    compute_dtype = DTYPES[config.compute_dtype]
    if config.layout.data_parallel_kind == "fsdp" and mesh.dp is not None:
        return torch.promote_types(compute_dtype, torch.float32)
    return compute_dtype


def attention_backend(config: TrainConfig, head_dim: int, device: torch.device) -> Backend:
    """Resolve "auto" for this device and model: FlashAttention knows half-width types and multiples of 8 only.

    Raises:
        ConfigError: A FlashAttention backend is asked for with a dtype or a head size that it does not have, or
            flash-attn-4 where it is not installed.
    """
    if device.type == "cuda" and config.attention in ("varlen", "fa4") and config.compute_dtype != "bf16":
        raise ConfigError(
            f"train.attention {config.attention!r} needs train.compute_dtype bf16, got {config.compute_dtype};"
            " use auto or sdpa"
        )
    if device.type == "cuda" and config.attention in ("varlen", "fa4") and head_dim % 8:
        raise ConfigError(
            f"train.attention {config.attention!r} needs a head size that is a multiple of 8, got {head_dim};"
            " use auto or sdpa"
        )
    if config.attention == "fa4" and device.type == "cuda" and (problem := flash4_problem()):
        raise ConfigError(f"train.attention 'fa4' cannot be used: {problem}; use auto")
    if config.attention != "auto":
        return config.attention
    flash = device.type == "cuda" and config.compute_dtype == "bf16" and head_dim % 8 == 0
    return "varlen" if flash else "sdpa"


def block_dims(spec: ModelSpec) -> BlockDims:
    """Return what a block needs to know beyond its weights."""
    return BlockDims(spec.head_dim, spec.queries_per_group, spec.norm_eps, spec.sliding_window)


def _vocabulary(cut: list[LocalTensor], exchange: TensorParallel) -> VocabularyShard:
    """Describe this rank's rows of embedding and head (a rank in the middle of a pipeline has neither)."""
    for local in cut:
        if local.name in ("embedding.weight", "head.weight"):
            start = local.pieces[0].rows[0] if local.pieces else exchange.rank * local.local_shape[0]
            return VocabularyShard(start, sum(p.rows[1] - p.rows[0] for p in local.pieces), exchange)
    return VocabularyShard(0, 0, exchange)


def _block_runner(
    config: TrainConfig,
    spec: ModelSpec,
    exchange: TensorParallel,
    device: torch.device,
    compile_backend: str | None,
    apart: WeightsApart | None,
) -> BlockRunner:
    """Gather what all layers have in common.

    Raises:
        ConfigError: Compiled blocks were asked for with zero-bubble.
    """
    if apart is not None and compile_backend is not None:
        raise ConfigError(
            "layout.zero_bubble cuts backward passes in two, which a compiled block cannot; set train.compile_blocks to"
            " false or layout.zero_bubble to false"
        )
    product: Product = F.linear if apart is None else apart.product
    if config.matmul_precision == "fp8_tensorwise":
        _check_fp8(spec, exchange.size, device)
        product = fp8.product
    options = RunOptions(
        backend=attention_backend(config, spec.head_dim, device),
        gate_up_rows=2 * spec.intermediate_size // exchange.size,
        regather=config.regather_activations,
        compile_backend=compile_backend,
        product=product,
    )
    return BlockRunner(block_dims(spec), exchange, options)


def _check_fp8(spec: ModelSpec, num_tensor_ranks: int, device: torch.device) -> None:
    """Refuse 8-bit products where the GPU or the model's sizes do not have them.

    Raises:
        ConfigError: They cannot be used.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < fp8.LEAST_CAPABILITY:
        raise ConfigError(
            f"train.matmul_precision fp8_tensorwise needs a GPU with 8-bit matrix products (Ada, Hopper or newer), got"
            f" {torch.cuda.get_device_name(device)}; set it to compute_dtype"
        )
    check_fp8_sizes(spec, num_tensor_ranks)


def _stages(
    config: TrainConfig,
    spec: ModelSpec,
    mesh: Mesh,
    weights: Mapping[str, nn.Parameter],
    vocabulary: VocabularyShard,
    run_of_layer: Callable[[int], RunBlock],
) -> list[Stage]:
    """Gather this rank's layers into its stages; the first and the last of all stages hold the model's ends."""
    layout = config.layout
    runs = layers_of_stage(spec.num_layers, layout.pipeline_parallel, mesh.at.pp, layout.virtual_stages)
    return [
        Stage(
            parameters=weights,
            layer_numbers=layers,
            is_first=0 in layers,
            is_last=spec.num_layers - 1 in layers,
            tied=spec.tied_embeddings,
            norm_eps=spec.norm_eps,
            vocabulary=vocabulary,
            head_chunk_rows=config.head_chunk_tokens,
            run_of_layer=run_of_layer,
        )
        for layers in runs
    ]


def _gradients(
    config: TrainConfig,
    mesh: Mesh,
    parameters: list[LocalParameter],
    stages: list[Stage],
    device: torch.device,
    *,
    is_sharded: bool,
    num_micro_batches: int,
) -> Gradients:
    """Choose where gradients gather; registers hooks on the parameters."""
    if is_sharded:
        return ShardedWeights(parameters)
    if device.type != "cuda":
        return ResidentWeights(parameters, mesh.dp)
    from stagecoach_train.parallel.gpu_data_parallel import overlapped  # needs triton

    return overlapped(
        parameters, stages, mesh, device, num_micro_batches=num_micro_batches, copy_engine=config.copy_engine_exchange
    )


def _local_parameters(
    config: TrainConfig, spec: ModelSpec, mesh: Mesh, stages: list[Stage], cut: list[LocalTensor], *, is_sharded: bool
) -> list[LocalParameter]:
    """Say of every parameter who updates, counts and writes which part."""
    tensors: dict[str, TensorSpec] = {tensor.name: tensor for tensor in native_tensors(spec)}
    pieces = {local.name: local for local in cut}
    layout, at = config.layout, mesh.at
    shares_tokens = layout.sequence_parallel and layout.tensor_parallel > 1
    found: list[LocalParameter] = []
    for stage in stages:
        for name, parameter in stage.native_parameters():
            kind = tensors[name].kind
            replicated = kind in ("norm", "head_norm")
            is_twin = spec.tied_embeddings and name == "embedding.weight" and mesh.ends is not None
            num_rows = pieces[name].local_shape[0]
            shard = shard_rows(num_rows, layout.data_parallel, at.dp)
            found.append(
                LocalParameter(
                    tensor=tensors[name],
                    parameter=parameter,
                    pieces=pieces[name].pieces,
                    num_rows=num_rows,
                    shard=shard,
                    held=shard if is_sharded else (0, num_rows),
                    is_counted=not (replicated and at.tp > 0) and not (is_twin and at.pp > 0),
                    # The final norm works on rows that every rank has; a head norm sees this rank's heads only.
                    sum_over_tp=kind == "head_norm"
                    or (kind == "norm" and shares_tokens and name != "final_norm.weight"),
                    is_twin=is_twin,
                    decays=len(tensors[name].shape) == 2
                    and (config.decay_embeddings or kind not in ("embedding", "head")),
                )
            )
    return found
