"""What is decided before anything is loaded: which packs make which step, the memory plan, the shape of a micro-batch.

Needs no torch, so that ``--check`` answers in a second on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError, DataError
from stagecoach.formats.packed import PackedSplit
from stagecoach.parallel.fp8_sizes import FP8_MULTIPLE
from stagecoach.recipe.train import TrainConfig, micro_batches_per_rank
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.data import DataOrder, refuse_untrained_steps
from stagecoach_train.feed import PackNumbers
from stagecoach_train.memory_plan import GIB, MemoryPlan, plan_memory, usable_bytes


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything that follows from recipe, model and packs alone.

    Attributes:
        config: The train section, with what was "auto" chosen.
        memory: The memory plan behind the choice.
        order: Which packs make which step.
        numbers: What is known of each pack.
        shape: Shape of every micro-batch.
        micro_batch_packs: Packs in a micro-batch.
        num_micro_batches: Micro-batches of each rank in each step.
    """

    config: TrainConfig
    memory: MemoryPlan
    order: DataOrder
    numbers: PackNumbers
    shape: MicroBatchShape
    micro_batch_packs: int
    num_micro_batches: int

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        spec: ModelSpec,
        train: PackedSplit,
        heldout: PackedSplit,
        gpu_memory_bytes: int | None,
    ) -> TrainingPlan:
        """Plan a training.

        Args:
            config: The train section of the recipe.
            spec: The model's dimensions.
            train: Packs to train on.
            heldout: Packs to evaluate on.
            gpu_memory_bytes: Memory of one GPU; None on a CPU, where nothing is limited.

        Raises:
            DataError: There is nothing to train on, a step has no trained target, or the packs hold ids that the model
                does not know.
            ConfigError: Nothing fits into the memory.
        """
        _refuse_unknown_ids(spec, train)
        order = DataOrder.of(config, train.num_packs)
        numbers = PackNumbers.of(train, spec)
        refuse_untrained_steps(order, numbers.num_targets)
        capacity = None if gpu_memory_bytes is None else usable_bytes(gpu_memory_bytes)
        memory = plan_memory(config, spec, pack_tokens=train.pack_tokens, capacity_bytes=capacity)
        data_parallel = config.layout.data_parallel
        k = min(memory.micro_batch_packs, -(-config.packs_per_step // data_parallel))
        fullest = max(train.max_documents_per_pack, heldout.max_documents_per_pack)
        shape = MicroBatchShape.of(pack_tokens=train.pack_tokens, micro_batch_packs=k, max_documents_per_pack=fullest)
        refuse_uneven(config, shape, k)
        num_micro_batches = micro_batches_per_rank(config.packs_per_step, data_parallel, k)
        return cls(memory.applied_to(config), memory, order, numbers, shape, k, num_micro_batches)

    def table(self) -> str:
        """Return what people want to know before they start."""
        order = self.order
        line = (
            f"{order.num_packs} packs, {order.packs_per_step} a step, {order.num_steps} steps"
            f" ({order.epoch_of_step(order.num_steps):.3g} epochs); each data-parallel rank:"
            f" {self.num_micro_batches} micro-batches of {self.shape.num_tokens:,} tokens"
        )
        return "\n".join([line, *self._warnings(), self.memory.table()])

    def _warnings(self) -> list[str]:
        warmup_steps, num_steps = self.config.warmup_steps_of(self.order.num_steps), self.order.num_steps
        if warmup_steps < num_steps:
            return []
        text = f"warning: the warm-up of {warmup_steps} steps is not shorter than the training of {num_steps}"
        return [f"{text}; train.schedule never begins"]


def _refuse_unknown_ids(spec: ModelSpec, train: PackedSplit) -> None:
    size = int(train.description["vocab_size"])
    if size > spec.vocab_size:
        raise DataError(
            f"train: the packs come from a tokenizer with {size} tokens, the model has embeddings for"
            f" {spec.vocab_size}; convert the model with the tokenizer that pack used"
        )


def refuse_uneven(config: TrainConfig, shape: MicroBatchShape, micro_batch_packs: int) -> None:
    """Refuse what ranks cannot share: tokens of a micro-batch, micro-batches of an interleaved pipeline.

    Raises:
        ConfigError: They do not divide evenly.
    """
    if not config.interleaves_evenly(micro_batch_packs):
        raise ConfigError(
            f"layout.virtual_stages needs a number of micro-batches that {config.layout.pipeline_parallel} pipeline ranks"
            " divide; change train.packs_per_step, or set layout.virtual_stages to 1"
        )
    if config.matmul_precision == "fp8_tensorwise" and shape.num_tokens % FP8_MULTIPLE:
        raise ConfigError(
            f"train.matmul_precision fp8_tensorwise needs a micro-batch of a multiple of {FP8_MULTIPLE} tokens, got"
            f" {shape.num_tokens}; change pack.pack_tokens, or set it to compute_dtype"
        )
    ranks = config.layout.tensor_parallel
    if config.layout.sequence_parallel and shape.num_tokens % ranks:
        raise ConfigError(
            f"layout.sequence_parallel needs a micro-batch of a multiple of {ranks} tokens, got {shape.num_tokens};"
            " change pack.pack_tokens, or set layout.sequence_parallel to false"
        )


def memory_without_gpu(config: TrainConfig) -> int | None:
    """Return the memory of one GPU that the recipe states, None if it trains on CPU.

    Raises:
        ConfigError: The recipe trains on GPUs, states no memory, and no GPU can be asked here.
    """
    if not config.gpus:
        return None
    if config.gpu_memory_gib is None:
        raise ConfigError("train.gpu_memory_gib: expected the memory of one GPU; none can be asked here")
    return int(config.gpu_memory_gib * GIB)
