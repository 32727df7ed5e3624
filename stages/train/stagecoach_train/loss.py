"""Head and cross entropy on trained rows only, gradient made in the forward pass, over a vocabulary cut by rows.

    R trained rows, V columns on this rank, e.g. 32,064 padded columns over 2 ranks, of which 32,000 are real:
      rank 0: columns 0 .. 16,031             rank 1: columns 16,032 .. 31,999, then 64 that are never in a softmax

      loss = log(sum exp(logits)) - logit[target];      d loss / d logits = softmax(logits) - one_hot(target)

Making the gradient right away costs no second product and lets the logits of a chunk be dropped before the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stagecoach_train.parallel.tensor_parallel import TensorParallel

# R trained rows, C rows of a chunk, E hidden size, V vocabulary rows of the head on this rank


@dataclass(frozen=True, slots=True)
class VocabularyShard:
    """Which tokens this rank's rows of embedding and head stand for.

    Attributes:
        start: Token id of the first row.
        num_real: Rows that are real tokens; the rest is padding. May be 0.
        exchange: How the ranks that share the vocabulary add up.
    """

    start: int
    num_real: int
    exchange: TensorParallel

    def local_ids(self, ids: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row numbers on this rank (clamped where elsewhere) and which ids are here."""
        local = ids - self.start
        here = (local >= 0) & (local < self.num_real)
        return local.clamp(0, num_rows - 1), here


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Cross entropy of each row and whether the greedy choice is its target."""

    losses_R: torch.Tensor
    correct_R: torch.Tensor


def wide_logits(h_CE: torch.Tensor, head_VE: torch.Tensor, shard: VocabularyShard) -> torch.Tensor:
    """Return this rank's columns of the logits in fp32 or better, padding columns at minus infinity."""
    logits_CV = h_CE @ head_VE.t()
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if shard.num_real < head_VE.shape[0]:
        logits_CV[:, shard.num_real :] = -torch.inf
    return logits_CV


def _losses(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, shard: VocabularyShard
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss and log-sum-exp of each row over the whole vocabulary, and its target's local column and presence."""
    exchange = shard.exchange
    column_C, here_C = shard.local_ids(targets_C, logits_CV.shape[1])
    highest_C = exchange.maximum(logits_CV.amax(-1))
    sum_exp_C = (logits_CV - highest_C[:, None]).exp_().sum(-1)
    target_logit_C = logits_CV.gather(1, column_C[:, None])[:, 0].masked_fill(~here_C, 0.0)
    sums_2C = exchange.total(torch.stack([sum_exp_C, target_logit_C]))
    lse_C = sums_2C[0].log() + highest_C
    return lse_C - sums_2C[1], lse_C, column_C, here_C


def _plain(
    h_CE: torch.Tensor, head_VE: torch.Tensor, targets_C: torch.Tensor, scale: float, shard: VocabularyShard
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows' losses and the gradient of scale x their sum by the logits, by tensor operations."""
    logits_CV = wide_logits(h_CE, head_VE, shard)
    losses_C, lse_C, column_C, here_C = _losses(logits_CV, targets_C, shard)
    grad_CV = logits_CV.sub_(lse_C[:, None]).exp_()
    grad_CV.scatter_add_(1, column_C[:, None], -here_C.to(grad_CV.dtype)[:, None])
    return losses_C, grad_CV.mul_((targets_C >= 0)[:, None] * scale).to(h_CE.dtype)


def _fused(
    h_CE: torch.Tensor, head_VE: torch.Tensor, targets_C: torch.Tensor, scale: float, shard: VocabularyShard
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by two kernels that read bf16 logits and write the gradient over them."""
    from stagecoach_train import gpu_kernels  # triton, which only GPU images have

    logits_CV = h_CE @ head_VE.t()
    highest_C, sum_exp_C, target_C = gpu_kernels.row_statistics(
        logits_CV, targets_C, shard.start, shard.num_real
    ).unbind(1)
    highest_everywhere_C = shard.exchange.maximum(highest_C)
    sums_2C = shard.exchange.total(torch.stack([sum_exp_C * (highest_C - highest_everywhere_C).exp(), target_C]))
    lse_C = sums_2C[0].log() + highest_everywhere_C
    gpu_kernels.logits_to_gradient_(logits_CV, targets_C, lse_C, scale, shard.start, shard.num_real)
    return lse_C - sums_2C[1], logits_CV


def _even_chunk(num_rows: int, largest: int) -> int:
    """Return the rows of a chunk such that all are about equally long: a short last one would waste a product.

    Examples:
        >>> _even_chunk(9_216, 8_192)
        4608
    """
    num_chunks = max(1, -(-num_rows // largest))
    return max(1, -(-num_rows // num_chunks))


class _HeadCrossEntropy(torch.autograd.Function):
    """Sum of the rows' losses times `scale`; must be the root of the graph, its own gradient is taken as 1."""

    @staticmethod
    def forward(
        ctx: Any,
        h_RE: torch.Tensor,
        head_VE: torch.Tensor,
        targets_R: torch.Tensor,
        scale: float,
        shard: VocabularyShard,
        chunk_rows: int,
    ) -> torch.Tensor:
        wide = torch.promote_types(h_RE.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=h_RE.device)
        dh_RE = torch.empty_like(h_RE)
        dhead_VE: torch.Tensor | None = None
        chunk_rows = _even_chunk(h_RE.shape[0], chunk_rows)
        for first in range(0, h_RE.shape[0], chunk_rows):
            h_CE, targets_C = h_RE[first : first + chunk_rows], targets_R[first : first + chunk_rows]
            losses_C, grad_CV = (_fused if h_RE.is_cuda else _plain)(h_CE, head_VE, targets_C, scale, shard)
            loss += losses_C.masked_fill(targets_C < 0, 0.0).sum() * scale
            torch.mm(grad_CV, head_VE, out=dh_RE[first : first + chunk_rows])
            part_VE = grad_CV.t() @ h_CE
            # More than one chunk: add them up in fp32, as gradients of micro-batches are.
            dhead_VE = part_VE if dhead_VE is None else dhead_VE.to(wide).add_(part_VE)
        ctx.save_for_backward(
            shard.exchange.total(dh_RE), torch.zeros_like(head_VE) if dhead_VE is None else dhead_VE.to(head_VE.dtype)
        )
        return loss

    @staticmethod
    def backward(ctx: Any, _grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dh_RE, dhead_VE = ctx.saved_tensors
        return dh_RE, dhead_VE, None, None, None, None


def head_cross_entropy(
    h_RE: torch.Tensor,
    head_VE: torch.Tensor,
    targets_R: torch.Tensor,
    scale: float,
    shard: VocabularyShard,
    chunk_rows: int,
) -> torch.Tensor:
    """Return scale x the summed cross entropy of the rows, in fp32 or better, ready for backward() as the root.

    Args:
        h_RE: Normalised hidden states of trained rows, the same on every rank of the shard's exchange.
        head_VE: This rank's rows of the head.
        targets_R: int64 [R]; negative ones are padding rows that add nothing.
        scale: 1 / targets of the whole step.
        shard: Which tokens the head's rows stand for.
        chunk_rows: Rows whose logits exist at the same time.
    """
    return _HeadCrossEntropy.apply(h_RE, head_VE, targets_R, scale, shard, chunk_rows)  # type: ignore[no-untyped-call, no-any-return]


@torch.no_grad()
def row_losses(
    h_RE: torch.Tensor, head_VE: torch.Tensor, targets_R: torch.Tensor, shard: VocabularyShard, chunk_rows: int
) -> RowLosses:
    """Return each row's loss and whether its greedy choice is right, without any gradient."""
    losses, correct = [], []
    for first in range(0, h_RE.shape[0], chunk_rows):
        targets_C = targets_R[first : first + chunk_rows]
        logits_CV = wide_logits(h_RE[first : first + chunk_rows], head_VE, shard)
        losses.append(_losses(logits_CV, targets_C, shard)[0])
        correct.append(greedy_choice(logits_CV, shard) == targets_C)
    if not losses:
        empty = h_RE.new_zeros(0, dtype=torch.promote_types(h_RE.dtype, torch.float32))
        return RowLosses(empty, empty.bool())
    return RowLosses(torch.cat(losses), torch.cat(correct))


@torch.no_grad()
def greedy_tokens(h_RE: torch.Tensor, head_VE: torch.Tensor, shard: VocabularyShard) -> torch.Tensor:
    """Return the most likely next token of each row, int64 [R]; of equal ones the lowest id."""
    return greedy_choice(wide_logits(h_RE, head_VE, shard), shard)


def greedy_choice(logits_CV: torch.Tensor, shard: VocabularyShard) -> torch.Tensor:
    """Return the id of each row's highest logit over all ranks' columns; of equal ones the lowest."""
    best_C, column_C = logits_CV.max(-1)
    highest_C = shard.exchange.maximum(best_C)
    # The smallest id among the ranks that hold the maximum, by way of a maximum of negatives.
    candidate_C = torch.where(best_C == highest_C, column_C + shard.start, torch.iinfo(torch.int64).max)
    return -shard.exchange.maximum(-candidate_C)
