"""Resident weights on GPUs: gradients travel to their owners while the backward pass goes on.

    compute stream    .. dW of layer 9 .. dW of layer 8 .. dW of layer 7 ..        (bf16)
    exchange stream         send 9 | sum 9   send 8 | sum 8   send 7 ..         parts arrive in bf16, are added in fp32

Sending bf16 parts to their owner and adding there gives the numbers of a reduce-scatter in fp32 at half its bytes.
The parts go by NCCL's all-to-all, or, where GPUs reach each other's memory, by their copy engines, which takes no
multiprocessor away from the matrix products. The compute stream waits for the exchange `KEEP` gradients back, so
they never pile up.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from stagecoach_train.gpu_kernels import add_parts
from stagecoach_train.model.transformer import Stage
from stagecoach_train.parallel.data_parallel import Gradients
from stagecoach_train.parallel.mesh import Mesh
from stagecoach_train.parallel.parameters import LocalParameter
from stagecoach_train.parallel.shares import shard_rows

KEEP = 6
"""Gradients whose exchange may be under way at the same time."""

SLOTS = 4
"""Receive buffers of the copy-engine exchange; a peer writes one while others are still being added."""

_log = logging.getLogger(__name__)


class Exchange(Protocol):
    """Brings every rank's part of a gradient to its owner."""

    def add(self, index: int, grad: torch.Tensor, total: torch.Tensor, *, first: bool) -> torch.Tensor | None:
        """On the current (exchange) stream: total (+)= sum of all ranks' parts; returns a buffer to keep alive."""


class OneGpu:
    """No data-parallel peer: gradients of micro-batches are added in fp32; a single one is taken as it is."""

    def __init__(self, parameters: Sequence[LocalParameter], *, num_micro_batches: int) -> None:
        """Register the hooks."""
        self.parameters = parameters
        self.accumulates = num_micro_batches > 1
        self.totals: list[torch.Tensor | None] = [None] * len(parameters)
        self._touched = [False] * len(parameters)
        for index, local in enumerate(parameters):
            hook = functools.partial(self._take, index)
            local.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Forget the last step's gradients; fp32 buffers stay allocated."""
        self._touched = [False] * len(self.parameters)
        if not self.accumulates:
            self.totals = [None] * len(self.parameters)

    def finish(self) -> list[torch.Tensor]:
        """Return the gradients; a parameter that no micro-batch touched has zeros."""
        found = []
        for local, total, touched in zip(self.parameters, self.totals, self._touched, strict=True):
            found.append(total if touched and total is not None else _zeros(local.weight_shard))
        return found

    def publish(self) -> None:
        """Nothing to do: the update was in place."""

    @torch.no_grad()
    def _take(self, index: int, parameter: torch.Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        first, self._touched[index] = not self._touched[index], True
        if not self.accumulates:
            # What is summed over other ranks next is widened first; the rest is read once, by the update.
            local = self.parameters[index]
            self.totals[index] = grad.float() if local.sum_over_tp or local.is_twin else grad
            return
        total = self.totals[index]
        if total is None:
            total = self.totals[index] = torch.empty_like(
                grad, dtype=torch.float32, memory_format=torch.contiguous_format
            )
        add_parts(total, grad.contiguous(), grad.new_empty(0), 0, first=first)


class Overlapped:
    """Several GPUs with the same weights: every gradient is exchanged on a stream of its own as soon as it exists."""

    def __init__(
        self,
        parameters: Sequence[LocalParameter],
        stages: Sequence[Stage],
        group: dist.ProcessGroup,
        exchange: Exchange,
        device: torch.device,
    ) -> None:
        """Register the hooks."""
        self.parameters, self.group, self.exchange, self.device = parameters, group, exchange, device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.totals: list[torch.Tensor | None] = [None] * len(parameters)
        self._touched = [False] * len(parameters)
        self._under_way: deque[tuple[Any, ...]] = deque()
        self._published: dict[int, torch.cuda.Event] = {}
        self._wait_where_weights_are_read(stages)
        for index, local in enumerate(parameters):
            hook = functools.partial(self._send, index)
            local.parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Forget the last step's gradients; fp32 buffers stay allocated."""
        self._touched = [False] * len(self.parameters)

    def finish(self) -> list[torch.Tensor]:
        """Wait for the last exchanges and return my rows' gradients."""
        self._wait_down_to(0)
        found = []
        for local, total, touched in zip(self.parameters, self.totals, self._touched, strict=True):
            found.append(total if touched and total is not None else _zeros(local.weight_shard))
        return found

    def publish(self) -> None:
        """Start all-gathering the updated rows into everybody's weights, in the order in which the model reads them.

        The next forward pass begins at once and waits layer by layer, so that all but the first gathers are hidden.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        num_ranks = dist.get_world_size(self.group)
        with torch.cuda.stream(self.stream):
            for index, local in enumerate(self.parameters):
                weight, rows = local.parameter.data, local.weight_shard
                if local.num_rows % num_ranks == 0:
                    dist.all_gather_into_tensor(weight, rows, group=self.group)
                else:
                    _gather_uneven(weight, rows, num_ranks, self.group)
                self._published[index] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._published[index].record(self.stream)

    def _wait_where_weights_are_read(self, stages: Sequence[Stage]) -> None:
        """Make the compute stream wait for a layer's weights just before the layer runs, and for the ends' likewise."""
        of_name = {local.name: index for index, local in enumerate(self.parameters)}

        def waiting(names: Sequence[str]) -> Callable[..., None]:
            indices = [of_name[name] for name in names if name in of_name]
            return lambda *_arguments: self._wait_for_published(indices)

        for stage in stages:
            for number, layer in zip(stage.layer_numbers, stage.layers, strict=True):
                layer.register_forward_pre_hook(
                    waiting([name for name in of_name if name.startswith(f"layers.{number}.")])
                )
            if stage.is_first:
                stage.register_forward_pre_hook(waiting(["embedding.weight"]))
            stage.before_head = waiting(["final_norm.weight", "head.weight", "embedding.weight"])

    def _wait_for_published(self, indices: Sequence[int]) -> None:
        for index in indices:
            event = self._published.pop(index, None)
            if event is not None:
                torch.cuda.current_stream(self.device).wait_event(event)

    @torch.no_grad()
    def _send(self, index: int, parameter: torch.Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        grad = grad.contiguous()
        first, self._touched[index] = not self._touched[index], True
        total = self.totals[index]
        if total is None:
            total = self.totals[index] = _zeros(self.parameters[index].weight_shard)
        made = torch.cuda.Event()  # type: ignore[no-untyped-call]
        made.record()
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(made)
            received = self.exchange.add(index, grad, total, first=first)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        # Kept until the compute stream has waited: the allocator hands memory on in the compute stream's order.
        self._under_way.append((done, grad, received))
        self._wait_down_to(KEEP)

    def _wait_down_to(self, count: int) -> None:
        while len(self._under_way) > count:
            torch.cuda.current_stream(self.device).wait_event(self._under_way.popleft()[0])


class AllToAll:
    """Exchange by NCCL."""

    def __init__(self, parameters: Sequence[LocalParameter], group: dist.ProcessGroup) -> None:
        """Work out every parameter's split sizes."""
        self.group = group
        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.sizes = [_elements_of_ranks(local, self.num_ranks) for local in parameters]

    def add(self, index: int, grad: torch.Tensor, total: torch.Tensor, *, first: bool) -> torch.Tensor | None:
        """Everybody sends everybody's rows; mine arrive in rank order and are added."""
        sizes = self.sizes[index]
        mine = sizes[self.rank]
        received = grad.new_empty(mine * self.num_ranks)
        dist.all_to_all_single(received, grad.view(-1), [mine] * self.num_ranks, sizes, group=self.group)
        add_parts(total, received[:mine], received[mine:], mine, first=first)
        return received


class CopyEngine:
    """Exchange by peer-to-peer copies into symmetric memory, ordered by signals; takes no multiprocessors."""

    def __init__(self, parameters: Sequence[LocalParameter], group: dist.ProcessGroup, device: torch.device) -> None:
        """Allocate the receive slots on all ranks together."""
        import torch.distributed._symmetric_memory as symmetric

        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.sizes = [_elements_of_ranks(local, self.num_ranks) for local in parameters]
        self.dtype = parameters[0].held_tensor.dtype
        self.part = max(max(sizes) for sizes in self.sizes)
        self.buffer = symmetric.empty(SLOTS * (self.num_ranks - 1) * self.part, dtype=self.dtype, device=device)
        self.handle = symmetric.rendezvous(self.buffer, group.group_name)
        self.turn = 0

    def add(self, index: int, grad: torch.Tensor, total: torch.Tensor, *, first: bool) -> torch.Tensor | None:
        """Copy each peer's rows into its slot, tell it, wait for mine and add them."""
        sizes = self.sizes[index]
        parts = torch.split(grad.view(-1), sizes)
        slot, self.turn = self.turn % SLOTS, self.turn + 1
        base = slot * (self.num_ranks - 1) * self.part
        for distance in range(1, self.num_ranks):
            peer = (self.rank + distance) % self.num_ranks
            if sizes[peer]:
                place = base + (distance - 1) * self.part
                self.handle.get_buffer(peer, (sizes[peer],), self.dtype, place).copy_(parts[peer])
            self.handle.put_signal(peer, 0)
        for distance in range(1, self.num_ranks):
            self.handle.wait_signal((self.rank - distance) % self.num_ranks, 0)
        peers = self.buffer[base : base + (self.num_ranks - 1) * self.part]
        add_parts(total, parts[self.rank], peers, self.part, first=first)
        return None


def overlapped(
    parameters: Sequence[LocalParameter],
    stages: Sequence[Stage],
    mesh: Mesh,
    device: torch.device,
    *,
    num_micro_batches: int,
    copy_engine: bool,
) -> Gradients:
    """Choose how gradients gather on this machine."""
    if mesh.dp is None:
        return OneGpu(parameters, num_micro_batches=num_micro_batches)
    exchange: Exchange
    if copy_engine and _peers_reach_each_other(mesh.dp, device):
        exchange = CopyEngine(parameters, mesh.dp, device)
    else:
        exchange = AllToAll(parameters, mesh.dp)
    _log.info("gradients are exchanged by %s", type(exchange).__name__)
    return Overlapped(parameters, stages, mesh.dp, exchange, device)


def _peers_reach_each_other(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether every rank of the group is on this machine and can write into every other's memory; all ranks agree."""
    ranks = dist.get_process_group_ranks(group)
    num_local = torch.cuda.device_count()
    index = torch.cuda.current_device()
    # Ranks of one machine have consecutive numbers and use the GPU of their local number.
    same_machine = len({rank // num_local for rank in ranks}) == 1
    reach = same_machine and all(
        rank % num_local == index or torch.cuda.can_device_access_peer(index, rank % num_local) for rank in ranks
    )
    votes = torch.tensor([int(reach)], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=group)
    return bool(votes.item())


def _elements_of_ranks(local: LocalParameter, num_ranks: int) -> list[int]:
    row_elements = local.held_tensor.numel() // max(1, local.num_rows)
    spans = (shard_rows(local.num_rows, num_ranks, rank) for rank in range(num_ranks))
    return [(stop - start) * row_elements for start, stop in spans]


def _gather_uneven(weight: torch.Tensor, rows: torch.Tensor, num_ranks: int, group: dist.ProcessGroup) -> None:
    share = -(-weight.shape[0] // num_ranks)
    padded = weight.new_zeros((share, *weight.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = weight.new_empty((share * num_ranks, *weight.shape[1:]))
    dist.all_gather_into_tensor(gathered, padded, group=group)
    weight.copy_(gathered[: weight.shape[0]])


def _zeros(shard: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(shard, dtype=torch.float32, memory_format=torch.contiguous_format)
