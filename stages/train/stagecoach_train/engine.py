"""The training engine: one optimizer step, evaluation, greedy answers and state, on any layout of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError, DataError
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import RecomputeMode, TrainConfig
from stagecoach_train import state
from stagecoach_train.batch import IGNORED_TARGET, MicroBatch, MicroBatchShape
from stagecoach_train.loss import RowLosses
from stagecoach_train.model.decode import Decoding
from stagecoach_train.optimizer import DTYPES, AdamW
from stagecoach_train.parallel import async_tp
from stagecoach_train.parallel.mesh import Mesh
from stagecoach_train.parallel.parallelize import attention_backend, block_dims, parallelize
from stagecoach_train.parallel.pipeline import Pipeline, pipeline
from stagecoach_train.parallel.tensor_parallel import tensor_parallel
from stagecoach_train.results import EvalResult, ReadState, ReadWeight, StatePiece, StepResult
from stagecoach_train.streams import StreamMaker


class Engine:
    """One rank's engine; every method is called by all ranks together.

    Attributes:
        num_updates: Optimizer updates that were applied (skipped steps not counted). Part of the state: save it with
            the checkpoint and pass it to `load_state`.
    """

    num_updates: int

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        topology: Topology,
        device: torch.device,
        *,
        num_micro_batches: int,
        shape: MicroBatchShape,
        compile_backend: str | None = None,
    ) -> None:
        """Build this rank's part of the model (weights zero); process group already initialised if world size > 1.

        Args:
            config: The train section of the recipe.
            spec: The model's dimensions.
            topology: The grid of ranks; this rank's number is that of the process group.
            device: Where to compute.
            num_micro_batches: Micro-batches that every data-parallel rank gets in each step.
            shape: The shape that every micro-batch has.
            compile_backend: torch.compile's backend for the blocks; None is inductor on a GPU and none on a CPU.

        Raises:
            ConfigError: The layout does not fit the model.
        """
        self.config, self.spec, self.device, self.shape = config, spec, device, shape
        self.num_micro_batches = num_micro_batches
        self.num_updates = 0
        self.mesh = Mesh.build(topology)
        self._expects_fusions = False
        if device.type == "cuda":
            self._prepare_gpu()
        self.model = parallelize(
            config,
            spec,
            self.mesh,
            device,
            _recompute_of_layers(config, spec.num_layers),
            num_micro_batches=num_micro_batches,
            compile_backend=compile_backend or default_compile_backend(config, spec.head_dim, device),
        )
        self.optimizer = AdamW(self.model.parameters, config)
        self.streams = StreamMaker(spec, device, DTYPES[config.compute_dtype])
        self.pipeline: Pipeline = pipeline(config, self.mesh, self.model, device, spec.hidden_size)

    def load_weights(self, read: ReadWeight) -> None:
        """Start a training from these weights: moments zero, num_updates 0."""
        self._wait_for_device()
        self.optimizer.reset()
        state.load_weights(self.model.parameters, self.optimizer.state, read)
        self.num_updates = 0

    def train_step(self, micro_batches: Sequence[MicroBatch | None], num_targets_in_step: int, lr: float) -> StepResult:
        """Do one optimizer step.

        Args:
            micro_batches: This data-parallel rank's; ranks that differ only in tp and pp are given the same ones. None
                stands for an empty one.
            num_targets_in_step: Trained targets of the step over all micro-batches and ranks.
            lr: This step's learning rate.

        Raises:
            DataError: The step has no target.
            ValueError: The number of micro-batches is not the engine's.
        """
        if num_targets_in_step < 1:
            raise DataError("a step needs at least one trained target, got none; its packs hold no trained token")
        if len(micro_batches) != self.num_micro_batches:
            raise ValueError(f"expected {self.num_micro_batches} micro-batches, got {len(micro_batches)}")
        scale = 1.0 / num_targets_in_step
        streams = [self.streams.make(batch or MicroBatch.empty(self.shape), scale=scale) for batch in micro_batches]
        self.model.gradients.begin()
        loss = self.pipeline.forward_backward(streams)
        gradients = self.model.gradients.finish()
        self._complete(gradients)
        loss_share, square = self._totals(loss, gradients)
        grad_norm = square.sqrt()
        # The small number is torch.nn.utils.clip_grad_norm_'s; it keeps a zero gradient from dividing by zero.
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        factor = (limit / (grad_norm + 1e-6)).clamp(max=1.0)
        factor = torch.where(torch.isfinite(grad_norm) & torch.isfinite(loss_share), factor, math.nan)
        self.optimizer.update(gradients, factor, lr=lr, update=self.num_updates + 1)
        self.model.gradients.publish()
        # The first wait for the device in the whole step: everything above is already queued.
        loss_sum, norm, applied = torch.stack([loss_share * num_targets_in_step, grad_norm, factor]).tolist()
        skipped = math.isnan(applied)
        if self._expects_fusions:
            async_tp.check_fused()
            self._expects_fusions = False
        self.num_updates += not skipped
        return StepResult(loss_sum, norm, skipped)

    def evaluate(self, batch: MicroBatch) -> EvalResult:
        """Return the loss of every document of a micro-batch, without training.

        All ranks call it equally often. Data-parallel ranks may be given different micro-batches and then get different
        results, each about its own; ranks of one copy of the model get the same.
        """
        rows = self.pipeline.forward(self.streams.make(batch, scale=1.0), "row_losses")
        assert isinstance(rows, RowLosses)
        is_target = batch.targets_T != IGNORED_TARGET
        num_targets = int(is_target.sum())
        losses = rows.losses_R[:num_targets].double().cpu().numpy()
        correct = rows.correct_R[:num_targets].cpu().numpy()
        document_of_row = np.searchsorted(batch.cu_seqlens, np.flatnonzero(is_target), side="right") - 1
        num_documents = len(batch.cu_seqlens) - 1
        return EvalResult(
            loss_sum=float(losses.sum()),
            num_targets=num_targets,
            num_correct=int(correct.sum()),
            document_loss_sums=np.bincount(document_of_row, losses, num_documents).astype(np.float64),
            document_num_targets=np.bincount(document_of_row, minlength=num_documents),
            document_num_correct=np.bincount(document_of_row[correct], minlength=num_documents),
        )

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Return the greedy continuation, the stop id included if one is reached.

        Every rank calls it with the same arguments and gets the same answer.
        """
        answer: list[int] = []
        decoding = Decoding(
            block_dims(self.spec),
            tensor_parallel(self.mesh.tp_constants, sequence_parallel=False),
            max_tokens=len(prompt_ids) + max_new_tokens,
        )
        upcoming = list(prompt_ids)
        while len(answer) < max_new_tokens and not (answer and answer[-1] in stop_ids):
            chosen = self.pipeline.forward(self.streams.make_next(upcoming, decoding), "greedy")
            assert isinstance(chosen, torch.Tensor)
            decoding.advance(len(upcoming))
            upcoming = [int(chosen[0])]
            answer += upcoming
        return answer

    def state_pieces(self) -> Iterator[StatePiece]:
        """Yield what this rank must write: over all ranks every native element of every kind exactly once."""
        yield from state.state_pieces(self.model.parameters, self.optimizer.state)

    def load_state(self, read: ReadState, *, num_updates: int) -> None:
        """Continue from a checkpoint written by any layout."""
        self._wait_for_device()
        state.load_state(self.model.parameters, self.optimizer.state, read)
        self.num_updates = num_updates

    def _wait_for_device(self) -> None:
        """Weights of the last update may still be arriving."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _prepare_gpu(self) -> None:
        """Set what is global to the process: deterministic kernels, asynchronous tensor parallelism."""
        if self.config.deterministic:
            torch.use_deterministic_algorithms(True)
            # Filling every empty tensor with NaN, as deterministic mode does to find bugs, would double memory traffic.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if self.config.async_tp and self.mesh.tp is not None:
            async_tp.enable(self.mesh.tp)
            self._expects_fusions = True

    def _complete(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add up in place what several ranks have parts of: norms under sequence parallelism, tied embeddings."""
        parameters = self.model.parameters
        if self.mesh.tp is not None:
            parts = [grad for local, grad in zip(parameters, gradients, strict=True) if local.sum_over_tp]
            if parts:
                flat = torch.cat([grad.flatten() for grad in parts])
                dist.all_reduce(flat, group=self.mesh.tp)
                for grad, total in zip(parts, torch.split(flat, [grad.numel() for grad in parts]), strict=True):
                    grad.copy_(total.view_as(grad))
        for local, grad in zip(parameters, gradients, strict=True):
            if local.is_twin:
                dist.all_reduce(grad, group=self.mesh.ends)

    def _totals(self, loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss and squared gradient norm over all ranks, each element once; fp64 scalars on the device."""
        counted = [
            grad
            for local, grad in zip(self.model.parameters, gradients, strict=True)
            if local.is_counted and grad.numel()
        ]
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        if counted and self.device.type == "cuda":
            square = torch.stack(torch._foreach_norm(counted, dtype=torch.float32)).double().square().sum()
        elif counted:
            square = (
                torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in counted]).square().sum()
            )
        mine = loss.double() if self.mesh.at.tp == 0 else torch.zeros_like(square)
        totals = torch.stack([mine, square])
        if self.mesh.world is not None:
            dist.all_reduce(totals, group=self.mesh.world)
        return totals[0], totals[1]


def default_compile_backend(config: TrainConfig, head_dim: int, device: torch.device) -> str | None:
    """Choose Inductor on a GPU, but not around attention document by document: its shapes are other ones every time."""
    if not config.compile_blocks or device.type != "cuda":
        return None
    return None if attention_backend(config, head_dim, device) == "sdpa" else "inductor"


def _recompute_of_layers(config: TrainConfig, num_layers: int) -> tuple[RecomputeMode, ...]:
    """Return each layer's mode; "auto" that nobody resolved (the memory plan does, on GPUs) computes nothing again."""
    modes = config.recompute
    if isinstance(modes, str):
        return ("none" if modes == "auto" else modes,) * num_layers
    if len(modes) != num_layers:
        raise ConfigError(f"recompute lists {len(modes)} layers but the model has {num_layers}; give one mode a layer")
    return modes
