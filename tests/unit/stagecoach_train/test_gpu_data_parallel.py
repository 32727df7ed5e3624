"""What one GPU keeps of a gradient: bf16 as it came, fp32 where parts are added."""

from __future__ import annotations

import torch
from torch import nn

from stagecoach.architectures.registry import TensorSpec
from stagecoach_train.parallel.gpu_data_parallel import OneGpu
from stagecoach_train.parallel.parameters import LocalParameter


def local(*, sum_over_tp: bool = False, is_twin: bool = False) -> LocalParameter:
    weight = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    return LocalParameter(
        tensor=TensorSpec("embedding.weight", (4, 2), "embedding"), parameter=weight, pieces=(), num_rows=4,
        shard=(0, 4), held=(0, 4), is_counted=True, sum_over_tp=sum_over_tp, is_twin=is_twin, decays=True,
    )  # fmt: skip


def test_a_gradient_that_other_ranks_add_to_is_widened_before() -> None:
    """Breaks if the halves of a tied embedding's gradient, or the parts of a norm's, are added in bf16."""
    parameters = [local(), local(sum_over_tp=True), local(is_twin=True)]
    gradients = OneGpu(parameters, num_micro_batches=1)
    gradients.begin()
    for each in parameters:
        torch.autograd.backward(each.parameter.sum())
    assert [grad.dtype for grad in gradients.finish()] == [torch.bfloat16, torch.float32, torch.float32]
