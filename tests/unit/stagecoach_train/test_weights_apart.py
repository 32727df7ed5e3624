"""Products whose weight gradient comes later: the same numbers as an undivided backward pass, and hooks run once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stagecoach_train.model.recompute import with_recompute
from stagecoach_train.parallel.weights_apart import WeightsApart, make_weight_gradients


def tensors() -> tuple[torch.Tensor, nn.Parameter, nn.Parameter]:
    torch.manual_seed(3)
    made = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    return made[0].double().requires_grad_(), nn.Parameter(made[1].double()), nn.Parameter(made[2].double())


def test_gradients_equal_those_of_an_undivided_pass_and_the_weights_hook_runs_once_and_late() -> None:
    x, weight, bias = tensors()
    F.linear(x, weight, bias).square().sum().backward()  # type: ignore[no-untyped-call]
    apart = WeightsApart()
    again, later, other = tensors()
    hooked: list[torch.Tensor | None] = []
    later.register_post_accumulate_grad_hook(lambda p: hooked.append(p.grad))  # type: ignore[no-untyped-call]
    apart.product(again, later, other).square().sum().backward()  # type: ignore[no-untyped-call]
    assert hooked == []
    torch.testing.assert_close(again.grad, x.grad)
    torch.testing.assert_close(other.grad, bias.grad)
    waiting = apart.take()
    assert apart.take() == []
    make_weight_gradients(waiting)
    assert waiting == []
    assert len(hooked) == 1
    torch.testing.assert_close(later.grad, weight.grad)


def test_a_recomputed_product_waits_once() -> None:
    apart = WeightsApart()
    x, weight, _ = tensors()
    run = with_recompute(lambda y: apart.product(y.sin(), weight), "full", gate_up_rows=0, regather=False)
    run(x).sum().backward()
    waiting = apart.take()
    assert len(waiting) == 1
    make_weight_gradients(waiting)
    torch.testing.assert_close(weight.grad, x.detach().sin().sum(0).expand(3, 4))
