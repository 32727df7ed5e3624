"""Head and cross entropy with the gradient made in the forward pass, against autograd's."""

from __future__ import annotations

import pytest
import torch

from stagecoach_train.loss import VocabularyShard, greedy_tokens, head_cross_entropy, row_losses
from stagecoach_train.parallel.tensor_parallel import OneRank

VOCABULARY = VocabularyShard(start=0, num_real=13, exchange=OneRank())


def rows(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven rows, a head of 13 tokens padded to 16, one row that only fills up."""
    torch.manual_seed(2)
    h = torch.randn(7, 6, dtype=dtype, requires_grad=True)
    head = torch.randn(16, 6, dtype=dtype, requires_grad=True)
    return h, head, torch.tensor([3, 0, 12, -100, 7, 7, 1])


@pytest.mark.parametrize("chunk_rows", [2, 7, 100])
def test_loss_and_gradients_equal_autograds(chunk_rows: int) -> None:
    h, head, targets = rows()
    loss = head_cross_entropy(h, head, targets, 0.25, VOCABULARY, chunk_rows)
    torch.autograd.backward(loss)
    h2, head2, _ = rows()
    expected = 0.25 * torch.nn.functional.cross_entropy(h2 @ head2[:13].t(), targets, reduction="sum")
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(h.grad, h2.grad)
    torch.testing.assert_close(head.grad, head2.grad)


def test_padding_rows_of_the_head_get_no_gradient() -> None:
    h, head, targets = rows()
    torch.autograd.backward(head_cross_entropy(h, head, targets, 1.0, VOCABULARY, 4))
    assert head.grad is not None
    assert head.grad[13:].abs().max() == 0.0


def test_no_rows_give_zero_loss_and_zero_gradients() -> None:
    h, head, targets = rows()
    loss = head_cross_entropy(h[:0], head, targets[:0], 1.0, VOCABULARY, 4)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert head.grad is not None
    assert head.grad.abs().max() == 0.0


def test_row_losses_and_greedy_choices() -> None:
    h, head, targets = rows()
    logits = (h @ head[:13].t()).detach()
    choices = logits.argmax(-1)
    found = row_losses(h, head, targets, VOCABULARY, 3)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.losses_R[targets >= 0], expected[targets >= 0])
    assert found.correct_R.tolist() == (choices == targets).tolist()
    assert greedy_tokens(h, head, VOCABULARY).tolist() == choices.tolist()


def test_of_equal_logits_the_lowest_token_is_chosen() -> None:
    h, head = torch.ones(1, 2), torch.ones(16, 2)
    assert greedy_tokens(h, head, VOCABULARY).tolist() == [0]
