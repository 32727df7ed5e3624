"""The train section of a recipe: what is optimised by which rule (result), on which machine and layout (placement)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stagecoach.recipe.base import Section, placement, result

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Cadence = PositiveInt | Literal["epoch"] | None

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_SHARE = 0.03

RecomputeMode = Literal["none", "selective", "selective_mlp", "full"]
"""What a layer computes again in the backward pass instead of keeping it.

none: nothing by policy; selective: norms, RoPE and the SwiGLU product (no matrix product); selective_mlp: also the
gate/up product; full: everything but the layer's input.
"""


def micro_batches_per_rank(packs_per_step: int, data_parallel: int, micro_batch_packs: int) -> int:
    """Return how many micro-batches each data-parallel rank gets in every step.

    Examples:
        10 packs on 2 ranks, 2 in a micro-batch: 5 packs a rank, so 3 micro-batches, one with an empty place.

        >>> micro_batches_per_rank(10, 2, 2)
        3
    """
    return math.ceil(packs_per_step / (data_parallel * micro_batch_packs))


ComputeDtype = Literal["fp32", "bf16", "fp64"]
Schedule = Literal["cosine", "linear", "constant", "wsd", "inverse_square_root"]


class Layout(Section):
    """How the ranks share one training step; the same mathematics whatever is chosen here."""

    data_parallel: PositiveInt = placement(1)
    """Copies of the model that work on different packs of the same step."""
    tensor_parallel: PositiveInt = placement(1)
    """Ranks that share every matrix of a layer."""
    pipeline_parallel: PositiveInt = placement(1)
    """Ranks that hold consecutive layers."""
    virtual_stages: PositiveInt = placement(1)
    """Pieces of consecutive layers that one pipeline rank holds; above 1 the schedule is interleaved."""
    zero_bubble: bool = placement(False)
    """Pipelines: make the weights' gradients where a rank would wait otherwise; holds more activations, and blocks are
    not compiled."""
    sequence_parallel: bool = placement(True)
    """Share norms and residual stream over the tensor-parallel ranks by tokens; without effect at tensor_parallel 1."""
    data_parallel_kind: Literal["sharded_optimizer", "fsdp"] = placement("sharded_optimizer")
    """sharded_optimizer: whole weights on every rank, optimizer state and gradients cut over the data-parallel ranks;
    fsdp: weights cut as well (PyTorch's FSDP2), for cards where the former does not fit."""

    @model_validator(mode="after")
    def _combination(self) -> Layout:
        if self.virtual_stages > 1 and self.pipeline_parallel == 1:
            raise ValueError(
                f"virtual_stages is {self.virtual_stages} but pipeline_parallel is 1: interleaving needs at least two "
                "pipeline ranks; set virtual_stages to 1 or pipeline_parallel to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _zero_bubble(self) -> Layout:
        if self.zero_bubble and self.pipeline_parallel == 1:
            raise ValueError("zero_bubble is set but pipeline_parallel is 1: there is no bubble; remove zero_bubble")
        if self.zero_bubble and self.data_parallel_kind == "fsdp" and self.data_parallel > 1:
            raise ValueError(
                "zero_bubble cannot be used with data_parallel_kind fsdp, which reduces a layer's gradients at the end"
                " of its backward pass; use sharded_optimizer"
            )
        return self

    @property
    def world_size(self) -> int:
        """Number of rank processes: data x tensor x pipeline."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel


class AnswerTask(Section):
    """One question with a checkable answer, asked greedily at start, end and best checkpoint."""

    prompt: str = placement()
    """The user's message."""
    expected: str = placement()
    """Text that the answer must contain."""


class TrainConfig(Section):
    """Everything about the train stage."""

    # --- length of the training
    epochs: PositiveFloat | None = result(None)
    """How often each pack is seen, may be fractional; 3 when neither this nor `steps` is given."""
    steps: PositiveInt | None = result(None)
    """Number of optimizer steps, instead of `epochs`."""
    packs_per_step: PositiveInt = result(32)
    """Packs whose gradients make one optimizer step, over all ranks and micro-batches."""
    seed: NonNegativeInt = result(1234)
    """Orders the packs and feeds stochastic rounding; nothing else in training is random."""

    # --- optimizer and schedule
    lr: PositiveFloat = result(1e-5)
    """Peak learning rate."""
    min_lr: NonNegativeFloat = result(1e-6)
    """Learning rate of the last step (cosine, linear, wsd) and the lower bound of inverse_square_root."""
    schedule: Schedule = result("cosine")
    """How the rate goes from peak to end after the warm-up."""
    warmup_steps: NonNegativeInt | None = result(None)
    """Steps of linear warm-up; instead of `warmup_share`."""
    warmup_share: Share | None = result(None)
    """Warm-up as a share of all steps, rounded to the nearest; 0.03 when neither this nor `warmup_steps` is given."""
    decay_share: Share = result(0.2)
    """wsd only: share of all steps, at the end, in which the rate falls linearly to `min_lr`."""
    first_update_at_zero: bool = result(False)
    """True counts as Megatron does: update k (from 0) uses position k, so the first one has rate 0 and `min_lr` is
    reached only after the last; False uses position k + 1."""
    betas: tuple[Beta, Beta] = result((0.9, 0.95))
    """AdamW's decay rates of first and second moment."""
    eps: PositiveFloat = result(1e-8)
    """AdamW's epsilon, added after the square root."""
    weight_decay: NonNegativeFloat = result(0.0)
    """Decoupled weight decay, multiplied by the learning rate; never on norms and biases."""
    decay_embeddings: bool = result(True)
    """Apply weight decay to embedding and head as well."""
    clip_norm: PositiveFloat | None = result(1.0)
    """Largest global L2 norm of the gradient; None does not clip."""
    non_finite_step_budget: NonNegativeInt = result(3)
    """Steps with a non-finite gradient are skipped; one more than this many ends the run with exit code 79."""

    # --- numbers
    compute_dtype: ComputeDtype = result("bf16")
    """Type of the matrix products; masters and gradients are fp32 (fp64 with fp64, on CPU only)."""
    matmul_precision: Literal["compute_dtype", "fp8_tensorwise"] = result("compute_dtype")
    """fp8_tensorwise: the four products of each layer in 8-bit floats with one scale a tensor, on GPUs from Ada on; faster,
    and an approximation whose rounding depends on layout and micro-batches."""
    moments_dtype: ComputeDtype = result("fp32")
    """Type in which AdamW's moments are kept; bf16 rounds the second one stochastically."""

    # --- where and how
    layout: Layout = placement(default_factory=Layout)
    """Data, tensor and pipeline parallelism."""
    nodes: PositiveInt = placement(1)
    """Machines; the ranks are divided evenly over them."""
    gpus: NonNegativeInt = placement(0)
    """GPUs on each machine; 0 trains on CPU (gloo)."""
    threads_per_rank: PositiveInt = placement(1)
    """CPU threads of each rank; the result's bits on CPU depend on it."""
    gpu_memory_gib: PositiveFloat | None = placement(None)
    """Usable memory of one GPU for the memory plan where no GPU can be asked; None asks the GPU."""
    micro_batch_packs: PositiveInt | Literal["auto"] = placement("auto")
    """Packs joined to one flat stream for one forward and backward pass; auto lets the memory plan choose."""
    recompute: RecomputeMode | Literal["auto"] | tuple[RecomputeMode, ...] = placement("auto")
    """What layers compute again in the backward pass: one mode for all, one a layer, or the memory plan's choice."""
    attention: Literal["auto", "sdpa", "varlen", "fa4"] = placement("auto")
    """Attention kernel; auto is varlen on a GPU (torch's own FlashAttention-2) and sdpa document by document on CPU."""
    compile_blocks: bool = placement(True)
    """Compile each transformer block on a GPU; never on CPU, where it does not pay."""
    async_tp: bool = placement(False)
    """Overlap tensor-parallel communication with the matrix products (GPU only)."""
    regather_activations: bool = placement(False)
    """Tensor parallel: gather a layer's input again in the backward pass instead of keeping it; about 1 % time."""
    copy_engine_exchange: bool = placement(True)
    """sharded_optimizer on GPUs that reach each other: exchange gradients by the copy engine; else NCCL."""
    deterministic: bool = placement(False)
    """Use deterministic kernels on GPU, so that a resumed run has the same bits; slower. CPU always is."""
    head_chunk_tokens: PositiveInt = placement(8192)
    """Trained rows that go through head and cross entropy at once."""
    communication_timeout_seconds: PositiveInt = placement(600)
    """Longest wait of a rank for its peers before the run ends with exit code 71."""

    # --- evaluation, saving, logging
    evaluate_every_steps: Cadence = placement("epoch")
    """Held-out evaluation every so many steps, at each epoch's end, or only at start and end (null)."""
    save_every_steps: Cadence = placement("epoch")
    """Checkpoint every so many steps, at each epoch's end, or only at the end (null)."""
    keep_last: PositiveInt = placement(2)
    """Newest checkpoints that are kept."""
    keep_every_steps: PositiveInt | None = placement(None)
    """Also keep every checkpoint whose step is a multiple of this."""
    keep_best: bool = placement(True)
    """Also keep the checkpoint with the lowest held-out loss."""
    wall_clock_budget_seconds: PositiveFloat | None = placement(None)
    """After this time the run saves and ends with exit code 75, to be continued by the next attempt."""
    log_every_steps: PositiveInt = placement(1)
    """Steps between console lines; the metrics stream has every step."""
    tensorboard: bool = placement(False)
    """Also write TensorBoard events."""
    wandb_project: str | None = placement(None)
    """Weights & Biases project to report to; None does not. Without a key or a connection its files are
    kept in the output, for `wandb sync`."""
    wandb_offline: bool = placement(False)
    """Keep Weights & Biases files local; no key is needed."""
    prompts: tuple[str, ...] = placement(())
    """User messages that are answered greedily at start, end and best checkpoint; with `keep_best` off the best one so
    far is asked, which may be gone at the end, and the best of those that are left then has no answers."""
    tasks: tuple[AnswerTask, ...] = placement(())
    """Questions with checkable answers, asked like the prompts; a recipe may name a file of them, with a JSON object a
    line."""
    answer_max_tokens: PositiveInt = placement(128)
    """Longest greedy answer, in tokens."""

    @model_validator(mode="after")
    def _combinations(self) -> TrainConfig:
        """Refuse what each field alone cannot see."""
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower min_lr or raise lr")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"both steps ({self.steps}) and epochs ({self.epochs:g}) are given; remove one of them")
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise ValueError("both warmup_steps and warmup_share are given; remove one of them")
        if self.moments_dtype == "fp64" and self.compute_dtype != "fp64":
            raise ValueError("moments_dtype fp64 needs compute_dtype fp64; use fp32 or bf16")
        if self.compute_dtype == "fp64" and self.gpus:
            raise ValueError(
                f"compute_dtype fp64 is for comparisons on CPU, got gpus {self.gpus}: on a GPU gradients and optimizer are"
                " fp32; use bf16 or fp32, or set gpus to 0"
            )
        if self.layout.zero_bubble and self.gpus and self.compile_blocks:
            raise ValueError(
                "layout.zero_bubble cuts backward passes in two, which a compiled block cannot; set compile_blocks to"
                " false or zero_bubble to false"
            )
        world_size = self.layout.world_size
        if self.gpus and world_size != self.nodes * self.gpus:
            raise ValueError(
                f"the layout has {world_size} ranks (data {self.layout.data_parallel} x tensor "
                f"{self.layout.tensor_parallel} x pipeline {self.layout.pipeline_parallel}) but nodes x gpus is "
                f"{self.nodes * self.gpus}; make the two equal, for example by data_parallel"
            )
        if world_size % self.nodes:
            raise ValueError(f"{world_size} ranks cannot be divided evenly over {self.nodes} nodes")
        return self

    @model_validator(mode="after")
    def _eight_bits(self) -> TrainConfig:
        """Refuse 8-bit products beside what they cannot be combined with."""
        if self.matmul_precision == "compute_dtype":
            return self
        if self.compute_dtype != "bf16":
            raise ValueError(
                f"matmul_precision {self.matmul_precision} needs compute_dtype bf16, got {self.compute_dtype}; set"
                " matmul_precision to compute_dtype"
            )
        for name, is_set in (("async_tp", self.async_tp), ("layout.zero_bubble", self.layout.zero_bubble)):
            if is_set:
                raise ValueError(
                    f"matmul_precision {self.matmul_precision} cannot be used with {name}, which takes products in"
                    f" bf16 apart; set {name} to false or matmul_precision to compute_dtype"
                )
        return self

    @model_validator(mode="after")
    def _whole_rounds(self) -> TrainConfig:
        """Refuse an interleaved pipeline whose micro-batches do not go round all ranks."""
        packs = self.known_micro_batch_packs
        if packs is not None and not self.interleaves_evenly(packs):
            count = micro_batches_per_rank(self.packs_per_step, self.layout.data_parallel, packs)
            raise ValueError(
                f"the interleaved pipeline needs a number of micro-batches that its {self.layout.pipeline_parallel} ranks"
                f" divide, got {count} ({self.packs_per_step} packs a step on {self.layout.data_parallel} data-parallel"
                " ranks); change packs_per_step or micro_batch_packs, or set layout.virtual_stages to 1"
            )
        return self

    @property
    def known_micro_batch_packs(self) -> int | None:
        """Packs in a micro-batch, no more than a data-parallel rank has; None where the memory plan of a GPU chooses."""
        if self.micro_batch_packs == "auto" and self.gpus:
            return None
        wanted = 1 if self.micro_batch_packs == "auto" else self.micro_batch_packs
        return min(wanted, math.ceil(self.packs_per_step / self.layout.data_parallel))

    def interleaves_evenly(self, micro_batch_packs: int) -> bool:
        """Whether micro-batches of so many packs go round the pipeline in whole rounds; needed with virtual stages."""
        count = micro_batches_per_rank(self.packs_per_step, self.layout.data_parallel, micro_batch_packs)
        return self.layout.virtual_stages == 1 or count % self.layout.pipeline_parallel == 0

    def total_steps(self, num_packs: int) -> int:
        """Return the number of optimizer steps for a training split of `num_packs` packs.

        Examples:
            The original's Mistral recipe, without its one extra step an epoch:

            >>> TrainConfig(epochs=5, packs_per_step=32).total_steps(4_833)
            756
        """
        if self.steps is not None:
            return self.steps
        return math.ceil(Fraction(self.total_packs(num_packs), self.packs_per_step))

    def total_packs(self, num_packs: int) -> int:
        """Return how many packs a training on `num_packs` packs sees, repetitions counted."""
        if self.steps is not None:
            return self.steps * self.packs_per_step
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        # As it is written: 0.1 x 30 is 3 packs, not the 4 that its binary rounding would give.
        return max(1, math.ceil(Fraction(str(epochs)) * num_packs))

    def steps_per_epoch(self, num_packs: int) -> int:
        """Return the number of steps in which `num_packs` packs have been seen once, the last one maybe partly."""
        return max(1, math.ceil(num_packs / self.packs_per_step))

    def warmup_steps_of(self, total_steps: int) -> int:
        """Return the warm-up's length in steps, whichever way it was given."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((DEFAULT_WARMUP_SHARE if self.warmup_share is None else self.warmup_share) * total_steps)
