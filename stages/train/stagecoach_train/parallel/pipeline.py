"""Runs micro-batches through this rank's stages: alone, or as one rank of a pipeline.

Every directed edge between two pipeline ranks has a process group of its own for activations and one for gradients. So
messages on one edge arrive in the order in which both sides compute, nothing waits behind a message in the other
direction, and sends need no partner at that moment: each rank simply works through its list of actions.

torch.distributed.pipelining has the same schedules, but allocates receive buffers for all micro-batches of a step (4 GB
for 32 of 16,384 tokens of a 7B model), and its whole-batch arguments do not fit streams with their own documents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from stagecoach.recipe.train import TrainConfig
from stagecoach_train.loss import RowLosses
from stagecoach_train.model.transformer import Stage, StreamBatch, Task
from stagecoach_train.optimizer import DTYPES
from stagecoach_train.parallel.fsdp import drop_gathered_weights
from stagecoach_train.parallel.mesh import Mesh
from stagecoach_train.parallel.parallelize import ParallelModel
from stagecoach_train.parallel.schedules import Action, one_forward_one_backward, with_weights_apart
from stagecoach_train.parallel.weights_apart import Waiting, make_weight_gradients


class Pipeline(Protocol):
    """How micro-batches pass the stages."""

    def forward_backward(self, batches: Sequence[StreamBatch]) -> torch.Tensor:
        """Forward and backward of every micro-batch; returns the summed scaled loss (zero but on the last stage)."""

    def forward(self, batch: StreamBatch, task: Task) -> torch.Tensor | RowLosses:
        """Forward of one micro-batch without gradients; every rank gets the last stage's result."""


class OneStage:
    """The whole model on this rank: micro-batch after micro-batch."""

    def __init__(self, model: ParallelModel) -> None:
        """Keep the only stage."""
        (self.stage,) = model.stages

    def forward_backward(self, batches: Sequence[StreamBatch]) -> torch.Tensor:
        """Forward and backward of every micro-batch; returns the summed scaled loss."""
        losses = []
        for batch in batches:
            loss = self.stage(None, batch)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def forward(self, batch: StreamBatch, task: Task) -> torch.Tensor | RowLosses:
        """Forward of one micro-batch without gradients."""
        result: torch.Tensor | RowLosses = self.stage(None, batch, task)
        drop_gathered_weights([self.stage])
        return result


class Edges:
    """The messages of one pipeline rank: activations onwards to the next rank, gradients back to the one before it."""

    def __init__(self, mesh: Mesh) -> None:
        """Make two groups for every directed edge of every pipeline, in the same order on all ranks."""
        lines = mesh.topology.groups("pp")
        num_ranks = mesh.topology.pipeline_parallel
        self.next_rank = mesh.pp_neighbour((mesh.at.pp + 1) % num_ranks)
        self.previous_rank = mesh.pp_neighbour((mesh.at.pp - 1) % num_ranks)
        me = mesh.pp_neighbour(mesh.at.pp)
        self._groups: dict[tuple[str, int, int], dist.ProcessGroup] = {}
        for line in lines:
            for place, source in enumerate(line):
                for kind, target in (("activation", line[(place + 1) % num_ranks]), ("gradient", line[place - 1])):
                    group = dist.new_group([source, target])
                    if me in (source, target):
                        self._groups[kind, source, target] = group
        self.me = me
        self._on_their_way: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def send(self, kind: str, tensor: torch.Tensor) -> None:
        """Start sending; the tensor is kept until it has gone."""
        target = self.next_rank if kind == "activation" else self.previous_rank
        tensor = tensor.contiguous()
        work = dist.isend(tensor, target, group=self._groups[kind, self.me, target])
        assert work is not None
        self._on_their_way.append((work, tensor))
        while self._on_their_way and self._on_their_way[0][0].is_completed():
            self._on_their_way.popleft()

    def start_receiving(self, kind: str, into: torch.Tensor) -> dist.Work:
        """Start receiving; wait for the returned work before reading."""
        source = self.previous_rank if kind == "activation" else self.next_rank
        work = dist.irecv(into, source, group=self._groups[kind, source, self.me])
        assert work is not None
        return work

    def finish_sending(self) -> None:
        """Wait until everything has gone."""
        while self._on_their_way:
            self._on_their_way.popleft()[0].wait()


class PipelineRank:
    """Works through this rank's actions; the next message is asked for while the present one is worked on."""

    def __init__(self, config: TrainConfig, mesh: Mesh, model: ParallelModel, device: torch.device, width: int) -> None:
        """Make the edges; `width` is the hidden size."""
        self.stages: list[Stage] = model.stages
        self.mesh, self.device, self.width = mesh, device, width
        self.dtype = DTYPES[config.compute_dtype]
        self.token_share = model.exchange.size if config.layout.sequence_parallel else 1
        self.edges = Edges(mesh)
        self.apart = model.apart
        self.num_ranks = mesh.topology.pipeline_parallel
        self._compiled = False

    def forward_backward(self, batches: Sequence[StreamBatch]) -> torch.Tensor:
        """Do this rank's part of a step; returns the summed scaled loss, zero but on the last stage."""
        actions = one_forward_one_backward(
            num_ranks=self.num_ranks,
            rank=self.mesh.at.pp,
            num_micro_batches=len(batches),
            stages_per_rank=len(self.stages),
        )
        if self.apart is not None:
            actions = with_weights_apart(actions, behind=self.mesh.at.pp)
        loss = torch.zeros((), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        alive: dict[tuple[int, int], tuple[torch.Tensor | None, torch.Tensor]] = {}
        waiting: dict[tuple[int, int], Waiting] = {}
        for action, message in self._with_messages(actions, batches):
            key = (action.stage, action.micro_batch)
            if action.is_forward:
                output = self._forward(self.stages[action.stage], message, batches[action.micro_batch])
                alive[key] = (message, output)
                if self.stages[action.stage].is_last:
                    loss += output.detach()
            elif action.kind == "backward":
                self._backward(*alive.pop(key), message)
                if self.apart is not None:
                    waiting[key] = self.apart.take()
            else:
                make_weight_gradients(waiting.pop(key))
        self.edges.finish_sending()
        self._compiled = True
        return loss

    @torch.no_grad()
    def forward(self, batch: StreamBatch, task: Task) -> torch.Tensor | RowLosses:
        """Pass one micro-batch through all stages and give everybody the result."""
        result: torch.Tensor | RowLosses | None = None
        for stage in self.stages:
            received = None
            if not stage.is_first:
                received = self._buffer(batch)
                self.edges.start_receiving("activation", received).wait()
            output = stage(received, batch, task)
            if stage.is_last:
                result = output
            else:
                self.edges.send("activation", output)
        self.edges.finish_sending()
        drop_gathered_weights(self.stages)
        return self._share(result, batch, task)

    def _with_messages(
        self, actions: Sequence[Action], batches: Sequence[StreamBatch]
    ) -> Iterator[tuple[Action, torch.Tensor | None]]:
        """Yield each action with the message it needs, having asked for the one after it already.

        Not in the first step: compiling waits for everything that the GPU has been given, and two ranks that
        compile while each waits for the other's next message would wait for ever.
        """
        asked: deque[tuple[dist.Work | None, torch.Tensor | None]] = deque()
        num_asked = 2 if self._compiled else 1
        for position, action in enumerate(actions):
            for upcoming in actions[position + len(asked) : position + num_asked]:
                asked.append(self._ask(upcoming, batches[upcoming.micro_batch]))
            work, message = asked.popleft()
            if work is not None:
                work.wait()
            yield action, message

    def _ask(self, action: Action, batch: StreamBatch) -> tuple[dist.Work | None, torch.Tensor | None]:
        stage = self.stages[action.stage]
        if action.kind == "weights" or (stage.is_first if action.is_forward else stage.is_last):
            return None, None
        message = self._buffer(batch)
        return self.edges.start_receiving("activation" if action.is_forward else "gradient", message), message

    def _buffer(self, batch: StreamBatch) -> torch.Tensor:
        num_tokens = batch.tokens_T.shape[0] // (1 if batch.decoding is not None else self.token_share)
        return torch.empty(num_tokens, self.width, dtype=self.dtype, device=self.device)

    def _forward(self, stage: Stage, received: torch.Tensor | None, batch: StreamBatch) -> torch.Tensor:
        if received is not None:
            received.requires_grad_()
        output: torch.Tensor = stage(received, batch)
        if not stage.is_last:
            self.edges.send("activation", output.detach())
        return output

    def _backward(self, received: torch.Tensor | None, output: torch.Tensor, grad: torch.Tensor | None) -> None:
        torch.autograd.backward(output, grad)
        if received is not None:
            assert received.grad is not None
            self.edges.send("gradient", received.grad)

    def _share(
        self, result: torch.Tensor | RowLosses | None, batch: StreamBatch, task: Task
    ) -> torch.Tensor | RowLosses:
        """Broadcast the last stage's result along the pipeline."""
        num_rows = batch.rows_R.shape[0]
        last_rank = self.mesh.pp_neighbour(self.num_ranks - 1)

        def broadcast(value: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
            if value is None:
                value = torch.empty(num_rows, dtype=dtype, device=self.device)
            value = value.to(dtype)
            dist.broadcast(value, last_rank, group=self.mesh.pp)
            return value

        if task == "greedy":
            assert not isinstance(result, RowLosses)
            return broadcast(result, torch.int64)
        wide = torch.promote_types(self.dtype, torch.float32)
        rows = result if isinstance(result, RowLosses) else None
        losses_R = broadcast(None if rows is None else rows.losses_R, wide)
        correct_R = broadcast(None if rows is None else rows.correct_R, torch.uint8)
        return RowLosses(losses_R, correct_R.bool())


def pipeline(config: TrainConfig, mesh: Mesh, model: ParallelModel, device: torch.device, width: int) -> Pipeline:
    """Choose the way for this layout."""
    if mesh.pp is None:
        return OneStage(model)
    return PipelineRank(config, mesh, model, device, width)
