"""In bf16 what sums many numbers is computed in fp32: norms, rotary angles, the softmax of the loss."""

from __future__ import annotations

import torch

from stagecoach_train.loss import VocabularyShard, head_cross_entropy, row_losses
from stagecoach_train.model.blocks import rms_norm
from stagecoach_train.model.rope import inverse_frequencies, rotary_table, rotate
from stagecoach_train.parallel.tensor_parallel import OneRank


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_norm_is_rounded_once() -> None:
    x, weight = normal(64, 512), torch.ones(512, dtype=torch.bfloat16)
    exact = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    found = rms_norm(x, weight, 1e-5)
    assert found.dtype == torch.bfloat16
    # fp32 falls on the other side of a tie now and then; mean and root in bf16 leave a third of all values wrong
    assert (found == exact.bfloat16()).float().mean().item() > 0.999


def test_a_rotation_is_rounded_once_and_late_positions_keep_their_angle() -> None:
    table = rotary_table(torch.arange(16_000, 16_064), inverse_frequencies(64, 1e4, None), torch.float32)
    x = normal(64, 2, 64)
    first, second = x.double().chunk(2, dim=-1)
    cos, sin = table.cos_T1F.double(), table.sin_T1F.double()
    exact = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    found = rotate(x, table.cos_T1F, table.sin_T1F)
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).float().mean().item() > 0.999


def test_the_softmax_of_the_loss_is_in_fp32() -> None:
    """Products are bf16; from their logits on everything is fp32, gradients too until they are handed back."""
    vocabulary = VocabularyShard(start=0, num_real=500, exchange=OneRank())
    h, head = normal(40, 16), normal(500, 16, seed=2)
    targets = torch.arange(40) * 7
    logits = (h @ head.t()).double()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = row_losses(h, head, targets, vocabulary, 16)
    assert found.losses_R.dtype == torch.float32
    torch.testing.assert_close(found.losses_R.double(), expected, rtol=1e-5, atol=1e-5)
    loss = head_cross_entropy(h, head, targets, 1.0, vocabulary, 16)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected.sum(), rtol=1e-5, atol=0)
