"""Plans a GPU's memory before anything is loaded: what each rank will hold, what is recomputed, how many packs at once.

The plan chooses recompute per layer and packs a micro-batch, and nothing else: dtypes and layout change results or
machines, so where nothing fits it refuses and says what would help. Bytes a token and layer for bf16 Mistral-7B (E
4,096, 32 + 2 x 8 heads of 128, I 14,336; sequence parallel divides all of it):

    mode             kept                                                                            KiB
    full             x                                                                                 8
    selective_mlp    x, q k v, attention output, output product                                       36
    selective        the same and gate/up                                                             92
    none             the same, both normalised inputs and SiLU(gate) * up                            136

Measured against the study's peaks: 34.7 GiB planned, 33.4 found (tensor 2, 16 layers); 73.3 and 71.8 (data 2, 32
layers); 73.7 and 72.4 (tensor 2, 32 layers).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError
from stagecoach.parallel.slicing import LocalTensor, RankLayout, layers_of_stage, local_rectangles
from stagecoach.recipe.train import RecomputeMode, TrainConfig

GIB = 2**30
OUTSIDE_ALLOCATOR_BYTES = int(1.5 * GIB)
"""CUDA context, NCCL buffers and kernels, which torch's allocator does not see."""
SLACK_SHARE = 0.02
"""Left free for fragmentation."""
GRADIENTS_UNDER_WAY = 7
"""Weight gradients that may exist in compute dtype before their exchange is done."""
FULL_SPEED_TOKENS = 8_192
"""From this many tokens on, matrix products run at their full rate."""
LARGEST_MICRO_BATCH_TOKENS = 16_384

_BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}
_MODES: tuple[RecomputeMode, ...] = ("none", "selective", "selective_mlp", "full")


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Bytes that one rank will hold at its peak, by what they are for."""

    pp_rank: int
    items: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Sum of all items."""
        return sum(self.items.values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What was chosen, and what it needs.

    Attributes:
        recompute: One mode a layer.
        micro_batch_packs: Packs a micro-batch.
        ranks: One plan for each pipeline rank (data- and tensor-parallel ranks are alike).
        capacity_bytes: What torch's allocator may use on one GPU; None on a CPU.
        extra_compute: Recompute as a share of forward plus backward.
    """

    recompute: tuple[RecomputeMode, ...]
    micro_batch_packs: int
    ranks: tuple[RankPlan, ...]
    capacity_bytes: int | None
    extra_compute: float

    @property
    def peak_bytes(self) -> int:
        """The fullest rank's total."""
        return max(rank.total_bytes for rank in self.ranks)

    def applied_to(self, config: TrainConfig) -> TrainConfig:
        """Return the config with "auto" replaced by what was chosen."""
        return config.model_copy(update={"recompute": self.recompute, "micro_batch_packs": self.micro_batch_packs})

    def table(self) -> str:
        """Return the plan as text, one column for each pipeline rank, in GiB."""
        head = "memory a rank, GiB".ljust(34) + "".join(f"pp {rank.pp_rank}".rjust(9) for rank in self.ranks)
        lines = [head]
        lines += [
            item.ljust(34) + "".join(f"{rank.items[item] / GIB:9.2f}" for rank in self.ranks)
            for item in self.ranks[0].items
        ]
        lines.append("total".ljust(34) + "".join(f"{rank.total_bytes / GIB:9.2f}" for rank in self.ranks))
        if self.capacity_bytes is not None:
            lines.append("usable".ljust(34) + f"{self.capacity_bytes / GIB:9.2f}" * len(self.ranks))
        lines.append(f"packs a micro-batch: {self.micro_batch_packs}; recompute: {_runs(self.recompute)}")
        return "\n".join(lines)

    def off_by(self, measured_peak_bytes: int) -> float:
        """Return (planned - measured) / measured for the fullest rank."""
        return (self.peak_bytes - measured_peak_bytes) / measured_peak_bytes


def usable_bytes(total_bytes: int) -> int:
    """Return what torch's allocator may use of a GPU with that much memory."""
    return int((total_bytes - OUTSIDE_ALLOCATOR_BYTES) * (1 - SLACK_SHARE))


def capacity_of(config: TrainConfig, gpu_bytes: int | None) -> int | None:
    """Return the capacity to plan for.

    Args:
        config: `gpu_memory_gib` wins over what the GPU says.
        gpu_bytes: Total memory of this rank's GPU; None without one.
    """
    if config.gpu_memory_gib is not None:
        return usable_bytes(int(config.gpu_memory_gib * GIB))
    return None if gpu_bytes is None else usable_bytes(gpu_bytes)


def plan_memory(config: TrainConfig, spec: ModelSpec, *, pack_tokens: int, capacity_bytes: int | None) -> MemoryPlan:
    """Choose packs a micro-batch and recompute per layer.

    Args:
        config: The train section; what is not "auto" is kept.
        spec: The model's dimensions.
        pack_tokens: Tokens of one pack.
        capacity_bytes: See `usable_bytes`; None (CPU) chooses one pack and no recompute.

    Raises:
        ConfigError: Nothing fits; says by how much and what would help.
    """
    plans = _plans(config, spec, pack_tokens, capacity_bytes)
    fitting = _fitting(plans)
    if not fitting:
        by_itself = config.model_copy(update={"micro_batch_packs": "auto"})
        others = _fitting(_plans(by_itself, spec, pack_tokens, capacity_bytes))
        raise ConfigError(_refusal(config, min(plans, key=lambda plan: plan.peak_bytes), others))

    def cost(plan: MemoryPlan) -> float:
        too_small = max(0.0, FULL_SPEED_TOKENS / (plan.micro_batch_packs * pack_tokens) - 1)
        return plan.extra_compute + 0.05 * too_small - 1e-6 * plan.micro_batch_packs

    return min(fitting, key=cost)


def _plans(config: TrainConfig, spec: ModelSpec, pack_tokens: int, capacity: int | None) -> list[MemoryPlan]:
    """Return the best plan for each number of packs in a micro-batch that comes into question."""
    packs_of_rank = max(1, -(-config.packs_per_step // config.layout.data_parallel))
    if config.micro_batch_packs != "auto":
        choices = [config.micro_batch_packs]
    elif capacity is None:
        choices = [1]
    else:
        largest = max(1, LARGEST_MICRO_BATCH_TOKENS // pack_tokens)
        choices = [k for k in range(1, largest + 1) if packs_of_rank % k == 0 and config.interleaves_evenly(k)]
        choices = choices or [1]
    return [_plan_for(config, spec, k * pack_tokens, k, capacity) for k in choices]


def _fitting(plans: Sequence[MemoryPlan]) -> list[MemoryPlan]:
    return [plan for plan in plans if plan.capacity_bytes is None or plan.peak_bytes <= plan.capacity_bytes]


def _plan_for(config: TrainConfig, spec: ModelSpec, num_tokens: int, k: int, capacity: int | None) -> MemoryPlan:
    layout = config.layout
    recompute: dict[int, RecomputeMode] = {}
    ranks = []
    for pp_rank in range(layout.pipeline_parallel):
        runs = layers_of_stage(spec.num_layers, layout.pipeline_parallel, pp_rank, layout.virtual_stages)
        layers = [layer for run in runs for layer in run]
        fixed = _fixed_bytes(config, spec, num_tokens, k, pp_rank)
        reserved = sum(fixed.values()) - (0 if _accumulates(config, k) else fixed["gradients"])
        chosen = _choose(config, spec, layers, num_tokens, k, pp_rank, reserved, capacity)
        recompute |= dict(zip(layers, chosen, strict=True))
        kept = sum(kept_bytes_per_token(spec, config, mode) for mode in chosen) * num_tokens
        alive = _micro_batches_alive(config, k, pp_rank)
        activations = kept * alive // layout.virtual_stages
        if layout.zero_bubble:
            # Products that wait keep their input and their output's gradient: as much as a layer in mode "none" keeps.
            waiting = kept_bytes_per_token(spec, config, "none") * len(layers) * num_tokens
            activations += waiting * (pp_rank + 1) // layout.virtual_stages
        if not _accumulates(config, k):
            # Without accumulation gradients appear as activations go: only what is larger counts.
            fixed["gradients"] = max(0, fixed["gradients"] - activations)
        ranks.append(RankPlan(pp_rank, {**fixed, "activations": activations}))
    modes = tuple(recompute[layer] for layer in range(spec.num_layers))
    extra = sum(extra_compute(spec, mode) for mode in modes) / len(modes)
    return MemoryPlan(modes, k, tuple(ranks), capacity, extra)


def _choose(
    config: TrainConfig,
    spec: ModelSpec,
    layers: Sequence[int],
    num_tokens: int,
    k: int,
    pp_rank: int,
    fixed_bytes: int,
    capacity: int | None,
) -> list[RecomputeMode]:
    """Give the last layers the least recompute that fits, the others the next mode."""
    if config.recompute != "auto":
        modes = config.recompute
        return [modes if isinstance(modes, str) else modes[layer] for layer in layers]
    if capacity is None:
        return ["none"] * len(layers)
    alive = _micro_batches_alive(config, k, pp_rank) / config.layout.virtual_stages
    free = capacity - fixed_bytes
    for better, worse in itertools.pairwise(_MODES):
        low = kept_bytes_per_token(spec, config, worse) * num_tokens * alive
        high = kept_bytes_per_token(spec, config, better) * num_tokens * alive
        if low * len(layers) <= free:
            upgraded = min(len(layers), int((free - low * len(layers)) // (high - low)))
            # Two graphs instead of one are worth it only if they save something.
            return [worse] * (len(layers) - upgraded) + [better] * upgraded
    return ["full"] * len(layers)


def kept_bytes_per_token(spec: ModelSpec, config: TrainConfig, mode: RecomputeMode) -> int:
    """Return what one layer keeps of one token of the stream on one rank until its backward pass."""
    tp = config.layout.tensor_parallel
    shares_tokens = config.layout.sequence_parallel and tp > 1
    stream = spec.hidden_size / (tp if shares_tokens else 1)
    heads = spec.num_heads * spec.head_dim / tp
    inner = spec.intermediate_size / tp
    elements = stream
    if mode != "full":
        elements += spec.qkv_rows / tp + heads + stream
        # Mode none has no policy that could ask for gathering again.
        if shares_tokens and (mode == "none" or not config.regather_activations):
            elements += 2 * spec.hidden_size
    if mode in ("selective", "none"):
        elements += 2 * inner
    bytes_beside = 4 * spec.num_heads // tp if mode != "full" else 0  # log-sum-exp
    # In 8 bits a compiled layer keeps no product's input: narrowing is elementwise, and made again from what is kept.
    if mode == "none" and config.matmul_precision != "fp8_tensorwise":
        elements += (0 if shares_tokens else 2 * stream) + inner
    return int(elements * _BYTES[config.compute_dtype]) + bytes_beside


def extra_compute(spec: ModelSpec, mode: RecomputeMode) -> float:
    """Return a layer's recompute as a share of its forward plus backward, by matrix products (elementwise 1.5 %)."""
    gate_up = 2 * spec.intermediate_size * spec.hidden_size
    layer = (
        spec.qkv_rows * spec.hidden_size
        + spec.num_heads * spec.head_dim * spec.hidden_size
        + 3 * spec.intermediate_size * spec.hidden_size
    )
    shares = {"none": 0.0, "selective": 0.015, "selective_mlp": 0.015 + gate_up / layer / 3, "full": 1 / 3}
    return shares[mode]


def _micro_batches_alive(config: TrainConfig, k: int, pp_rank: int) -> int:
    """Return how many stages' activations a rank holds at its peak (see `parallel.schedules`)."""
    layout = config.layout
    a_step = max(1, -(-config.packs_per_step // (layout.data_parallel * k)))
    ahead = layout.pipeline_parallel - pp_rank - 1
    if layout.virtual_stages > 1:
        ahead = 2 * ahead + (layout.virtual_stages - 1) * layout.pipeline_parallel
    return min(ahead + 1, a_step * layout.virtual_stages)


def _accumulates(config: TrainConfig, k: int) -> bool:
    """Whether fp32 gradient buffers exist besides the gradients of a micro-batch."""
    return config.layout.data_parallel > 1 or config.packs_per_step > k


def _fixed_bytes(config: TrainConfig, spec: ModelSpec, num_tokens: int, k: int, pp_rank: int) -> dict[str, int]:
    """Return everything but activations."""
    layout = config.layout
    cut = local_rectangles(
        spec, RankLayout(layout.tensor_parallel, layout.pipeline_parallel, layout.virtual_stages), 0, pp_rank
    )
    parameters = sum(_elements(local) for local in cut)
    compute = _BYTES[config.compute_dtype]
    master = max(4, compute)
    moments = 2 * max(_BYTES[config.moments_dtype], compute if config.compute_dtype == "fp64" else 0)
    dp = layout.data_parallel
    is_sharded = layout.data_parallel_kind == "fsdp" and dp > 1
    accumulates = _accumulates(config, k)
    items = {
        "weights": master * parameters // dp + _gathered(cut, compute) if is_sharded else compute * parameters,
        "masters beyond weights": 0 if is_sharded else (master - compute) * parameters // dp,
        "moments": moments * parameters // dp,
        "gradients": master * parameters // dp if accumulates else compute * parameters,
        "gradients under way": _under_way(cut, compute, dp) if accumulates else 0,
    }
    return items | _transient_bytes(config, spec, num_tokens, cut)


def _transient_bytes(
    config: TrainConfig, spec: ModelSpec, num_tokens: int, cut: Sequence[LocalTensor]
) -> dict[str, int]:
    """Return what exists for a moment only: logits of one chunk, and one layer's temporary tensors."""
    compute, tp = _BYTES[config.compute_dtype], config.layout.tensor_parallel
    head_rows = max(
        (local.local_shape[0] for local in cut if local.name in ("head.weight", "embedding.weight")), default=0
    )
    has_head = any(local.name == "final_norm.weight" for local in cut)
    rows = min(config.head_chunk_tokens, num_tokens)
    logits = (rows * head_rows + head_rows * spec.hidden_size + 3 * num_tokens * spec.hidden_size) * compute
    one_layer = kept_bytes_per_token(spec, config, "none") * num_tokens
    rotary = 4 * num_tokens * spec.head_dim
    return {
        "logits and head's gradient": logits if has_head else 0,
        "one layer at work": one_layer + rotary + 2 * num_tokens * spec.hidden_size * compute // tp,
    }


def _elements(local: LocalTensor) -> int:
    return local.local_shape[0] * (local.local_shape[1] if len(local.local_shape) == 2 else 1)


def _gathered(cut: Sequence[LocalTensor], compute_bytes: int) -> int:
    """fsdp: two layers in compute dtype, the ends, and one layer's gradient before it is reduced in fp32."""
    layers: dict[str, int] = {}
    ends = 0
    for local in cut:
        if local.name.startswith("layers."):
            number = local.name.split(".")[1]
            layers[number] = layers.get(number, 0) + _elements(local)
        else:
            ends += _elements(local)
    layer = max(layers.values(), default=0)
    return (2 * layer + ends) * compute_bytes + layer * (compute_bytes + 4)


def _under_way(cut: Sequence[LocalTensor], compute_bytes: int, dp: int) -> int:
    """The largest run of gradients that the exchange has not finished, and what arrived of them."""
    sizes = [_elements(local) for local in cut]
    windows = [sum(sizes[i : i + GRADIENTS_UNDER_WAY]) for i in range(max(1, len(sizes) - GRADIENTS_UNDER_WAY + 1))]
    sent = max(windows) * compute_bytes
    return sent + sent // dp if dp > 1 else max(sizes) * compute_bytes


def _refusal(config: TrainConfig, plan: MemoryPlan, with_other_packs: Sequence[MemoryPlan]) -> str:
    """Say what would help; ``with_other_packs`` are plans that fit with another number of packs in a micro-batch."""
    capacity = plan.capacity_bytes or 0
    missing = (plan.peak_bytes - capacity) / GIB
    layout = config.layout
    ideas = []
    if with_other_packs:
        most = max(other.micro_batch_packs for other in with_other_packs)
        ideas.append(f"micro_batch_packs: auto (now {plan.micro_batch_packs}, {most} would fit)")
    if config.moments_dtype != "bf16":
        ideas.append("moments_dtype: bf16 (4 bytes a parameter less)")
    if config.recompute not in ("auto", "full"):
        ideas.append("recompute: auto")
    if layout.data_parallel > 1 and layout.data_parallel_kind != "fsdp":
        ideas.append("layout.data_parallel_kind: fsdp")
    ideas.append(f"a larger layout.tensor_parallel (now {layout.tensor_parallel}) or pipeline_parallel")
    ideas.append("shorter packs (pack.pack_tokens)")
    return (
        f"the smallest plan needs {plan.peak_bytes / GIB:.1f} GiB on the fullest rank but {capacity / GIB:.1f} GiB are "
        f"usable, {missing:.1f} GiB too much; change one of: {'; '.join(ideas)}\n{plan.table()}"
    )


def _runs(modes: Sequence[RecomputeMode]) -> str:
    """Write modes as runs.

    Examples:
        >>> _runs(["selective", "selective", "none"])
        '2 x selective, 1 x none'
    """
    runs: list[tuple[RecomputeMode, int]] = []
    for mode in modes:
        if runs and runs[-1][0] == mode:
            runs[-1] = (mode, runs[-1][1] + 1)
        else:
            runs.append((mode, 1))
    return ", ".join(f"{count} x {mode}" for mode, count in runs)
