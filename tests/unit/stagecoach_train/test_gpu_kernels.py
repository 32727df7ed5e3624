"""Triton kernels run by Triton's interpreter on the CPU, against their plain counterparts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import dataclasses, torch
from stagecoach_train import gpu_kernels, masters, philox
from stagecoach_train.optimizer import plain_adamw
from stagecoach_train.updates import Slice, UpdateNumbers
from stagecoach_train.parallel.shares import Rectangle

torch.manual_seed(0)
numbers = UpdateNumbers(update=7, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, step_size=1e-3 / (1 - 0.9**7),
                        root_correction=(1 - 0.999**7) ** 0.5, seed=2**40 + 5)

def part(split, moments, columns):
    shape = 6, columns[1] - columns[0]
    master = torch.randn(shape)
    weight, remainder = master.clone(), None
    if split:
        weight, remainder = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.int16)
        masters.split_(master, weight, remainder)
    return Slice(weight, remainder, torch.randn(shape), (torch.randn(shape) * 0.1).to(moments),
                 (torch.rand(shape) * 0.01).to(moments), Rectangle((3, 9), columns, (0, 6), (0, shape[1])), 40,
                 philox.tensor_number("layers.0.mlp.down.weight"), 1e-4)

# The second cut begins and ends between the random generator's blocks of eight elements, as tests on tiny models do.
for columns in ((16, 32), (20, 30)):
  for split, moments in ((True, torch.bfloat16), (True, torch.float32), (False, torch.bfloat16), (False, torch.float32)):
        plain = part(split, moments, columns)
        fused = dataclasses.replace(plain, **{
            field.name: getattr(plain, field.name).clone() for field in dataclasses.fields(Slice)
            if isinstance(getattr(plain, field.name), torch.Tensor)})
        plain_adamw(plain, 0.5, numbers)
        gpu_kernels.adamw_pass(fused, torch.tensor(0.5, dtype=torch.float64), numbers)
        whole = [masters.join(p.weight, p.remainder) if split else p.weight for p in (plain, fused)]
        torch.testing.assert_close(whole[0], whole[1], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(plain.exp_avg.float(), fused.exp_avg.float(), rtol=1e-2, atol=1e-7)
        torch.testing.assert_close(plain.exp_avg_sq, fused.exp_avg_sq, rtol=1e-6, atol=0)
        before = fused.weight.clone()
        gpu_kernels.adamw_pass(fused, torch.tensor(float("nan")), numbers)
        assert torch.equal(before, fused.weight)

gpu_kernels.COLUMN_BLOCK = 32
logits, targets = torch.randn(5, 70), torch.tensor([3, 40, -100, 66, 0])
real, changed = logits[:, :60], logits.clone()
highest, sum_exp, target = gpu_kernels.row_statistics(changed, targets, 10, 60).unbind(1)
assert torch.equal(highest, real.amax(1))
torch.testing.assert_close(sum_exp, (real - highest[:, None]).exp().sum(1))
assert target.tolist() == [0, logits[1, 30], 0, logits[3, 56], 0]
lse = sum_exp.log() + highest
gpu_kernels.logits_to_gradient_(changed, targets, lse, 0.25, 10, 60)
expected = (real - lse[:, None]).exp()
expected[1, 30] -= 1
expected[3, 56] -= 1
expected[2] = 0
torch.testing.assert_close(changed[:, :60], expected * 0.25)
assert changed[:, 60:].abs().max() == 0
nothing = gpu_kernels.row_statistics(logits, targets, 100, 0)
assert nothing[:, 1:].abs().max() == 0

total, own = torch.full((9,), 5.0), torch.arange(9.0).bfloat16()
gpu_kernels.add_parts(total, own, torch.ones(24).bfloat16(), 12, first=True)
assert total.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
gpu_kernels.add_parts(total, own, own.new_empty(0), 0, first=False)
assert total.tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18]

from stagecoach_train.model.swiglu import swiglu_backward
gpu_kernels.SWIGLU_BLOCK = 16
grad, gate_up = torch.randn(5, 24), torch.randn(5, 48) * 4
torch.testing.assert_close(gpu_kernels.swiglu_gradient(grad, gate_up), swiglu_backward(grad, gate_up))
print("kernels agree")
"""


def test_kernels_equal_their_plain_counterparts() -> None:
    pytest.importorskip("triton", reason="triton comes with the GPU build of torch")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "kernels agree"
