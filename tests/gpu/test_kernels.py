"""Kernels on a real GPU: attention, AdamW and cross entropy against plain fp32 arithmetic on the CPU."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from stagecoach_train import masters, philox
from stagecoach_train.loss import VocabularyShard, head_cross_entropy
from stagecoach_train.model import fp8
from stagecoach_train.model.attention import Backend, Documents, attend
from stagecoach_train.model.kernels import flash4_problem
from stagecoach_train.model.swiglu import swiglu_backward
from stagecoach_train.optimizer import plain_adamw
from stagecoach_train.parallel.shares import Rectangle
from stagecoach_train.parallel.tensor_parallel import OneRank
from stagecoach_train.updates import Slice, UpdateNumbers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
MAX_RELATIVE_ERROR_BF16 = 0.02
"""Frobenius norm; bf16 has 8 bits, and the gradient passes four products."""

DOCUMENTS = {
    "one": [1_000],
    "two hundred": [5] * 200,
    "one token each": [1] * 64,
    "mixed": [700, 1, 250, 3, 46],
}


def documents_of(lengths: list[int], device: str) -> Documents:
    """Padded by two empty documents."""
    edges = list(itertools.accumulate([0, *lengths, 0, 0]))
    spans = tuple((a, b) for a, b in itertools.pairwise(edges) if b > a)
    cu_seqlens = torch.tensor(edges, dtype=torch.int32, device=device)
    return Documents(cu_seqlens, torch.tensor(1_024, dtype=torch.int32), spans)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().double().cpu() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("backend", ["varlen", "fa4"])
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_attention_equals_the_cpu_reference(backend: Backend, window: int | None, lengths: list[int]) -> None:
    if backend == "fa4" and (problem := flash4_problem()):
        pytest.skip(f"flash-attn-4 on this GPU machine: {problem}")
    torch.manual_seed(0)
    total = sum(lengths)
    values = [torch.randn(total, heads, 128).bfloat16() for heads in (8, 2, 2)]
    weight = torch.randn(total, 8, 128)
    on_gpu = [value.cuda().requires_grad_() for value in values]
    on_cpu = [value.float().requires_grad_() for value in values]
    q, k, v = on_gpu
    out = attend(q, k, v, documents_of(lengths, "cuda"), window, backend)
    torch.autograd.backward((out * weight.cuda()).sum())
    q, k, v = on_cpu
    expected = attend(q, k, v, documents_of(lengths, "cpu"), window, "sdpa")
    torch.autograd.backward((expected * weight).sum())
    assert relative_error(out, expected.detach()) <= MAX_RELATIVE_ERROR_BF16
    for got, wanted in zip(on_gpu, on_cpu, strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        if wanted.grad.norm() > 1e-3:  # one-token documents: queries and keys have no gradient
            assert relative_error(got.grad, wanted.grad) <= MAX_RELATIVE_ERROR_BF16


@pytest.mark.parametrize("backend", ["varlen", "fa4"])
def test_deterministic_attention_gives_the_same_bits_every_time(backend: Backend) -> None:
    if backend == "fa4" and (problem := flash4_problem()):
        pytest.skip(f"flash-attn-4 on this GPU machine: {problem}")
    torch.manual_seed(0)
    q, k, v = (torch.randn(8_192, heads, 128, device="cuda").bfloat16().requires_grad_() for heads in (32, 8, 8))
    weight = torch.randn(8_192, 32, 128, device="cuda").bfloat16()
    documents = documents_of([5_000, 192, 3_000], "cuda")
    documents = dataclasses.replace(documents, max_seqlen=torch.tensor(8_192, dtype=torch.int32))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        seen = [torch.autograd.grad(attend(q, k, v, documents, None, backend), (q, k, v), weight) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(before)
    for again in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(seen[0], again, strict=True))


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("split", [True, False])
def test_adamw_equals_the_plain_one(split: bool, moments: torch.dtype) -> None:
    from stagecoach_train.gpu_kernels import adamw_pass

    torch.manual_seed(0)
    shape = (300, 40)
    master = torch.randn(shape)
    weight, remainder = master.clone(), None
    if split:
        weight, remainder = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.int16)
        masters.split_(master, weight, remainder)
    exp_avg, exp_avg_sq = (torch.randn(shape) * 0.1).to(moments), (torch.rand(shape) * 0.01).to(moments)
    rectangle = Rectangle((100, 400), (20, 60), (0, 300), (0, 40))
    plain = Slice(weight, remainder, torch.randn(shape), exp_avg, exp_avg_sq, rectangle, 80, 77, 1e-4)
    fused = dataclasses.replace(
        plain,
        **{
            field.name: getattr(plain, field.name).cuda()
            for field in dataclasses.fields(Slice)
            if isinstance(getattr(plain, field.name), torch.Tensor)
        },
    )
    numbers = UpdateNumbers(
        update=3, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, step_size=1e-3 / (1 - 0.9**3),
        root_correction=(1 - 0.999**3) ** 0.5, seed=2**35 + 1,
    )  # fmt: skip
    adamw_pass(fused, torch.tensor(0.5, device="cuda", dtype=torch.float64), numbers)
    plain_adamw(plain, 0.5, numbers)
    whole = [masters.join(p.weight, p.remainder) if p.remainder is not None else p.weight for p in (plain, fused)]
    torch.testing.assert_close(whole[1].cpu(), whole[0], rtol=1e-5, atol=1e-7)
    if moments == torch.float32:  # the GPU contracts a product and a sum to one rounding
        torch.testing.assert_close(fused.exp_avg_sq.cpu(), plain.exp_avg_sq, rtol=1e-6, atol=0)
        return
    # The same random bits on both: only values within one rounding error of a bf16 edge may differ.
    assert (fused.exp_avg_sq.cpu() == plain.exp_avg_sq).float().mean().item() >= 0.999


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < fp8.LEAST_CAPABILITY,
    reason="needs an NVIDIA GPU with 8-bit products",
)
def test_a_product_in_eight_bits_equals_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(512, 256).bfloat16(), (torch.randn(384, 256) * 0.02).bfloat16()]
    weight_of_output = torch.randn(512, 384).bfloat16()
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.detach().to(device).requires_grad_() for x in inputs]
        y = fp8.product(*leaves)
        torch.autograd.backward((y * weight_of_output.to(device)).sum())
        found.append([y.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for got, expected in zip(found[1], found[0], strict=True):
        assert relative_error(got, expected) <= 0.005  # the same 8-bit values; only the sums are rounded otherwise


@pytest.mark.parametrize("shape", [(300, 2 * 1_000), (16, 2 * 14_336), (1, 2 * 24)])
def test_the_gradient_of_swiglu_equals_fp32(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gate_up, grad = torch.randn(shape).bfloat16() * 3, torch.randn(shape[0], shape[1] // 2).bfloat16()
    expected = swiglu_backward(grad.float(), gate_up.float())
    assert relative_error(swiglu_backward(grad.cuda(), gate_up.cuda()), expected) <= 0.004


def test_random_bits_do_not_depend_on_the_device() -> None:
    elements = torch.arange(0, 2**40, 2**33)
    expected = philox.random_bits(5, 6, 7, elements)
    assert torch.equal(philox.random_bits(5, 6, 7, elements.cuda()).cpu(), expected)


@pytest.mark.parametrize("vocab_size", [500, 32_002, 152_000])
def test_cross_entropy_equals_fp32(vocab_size: int) -> None:
    torch.manual_seed(0)
    shard = VocabularyShard(0, vocab_size, OneRank())
    padded = -(-vocab_size // 128) * 128
    h, head = torch.randn(100, 64).bfloat16(), (torch.randn(padded, 64) * 0.3).bfloat16()
    targets = torch.randint(0, vocab_size, (100,))
    targets[::7] = -100
    leaves = [x.cuda().requires_grad_() for x in (h, head)]
    loss = head_cross_entropy(leaves[0], leaves[1], targets.cuda(), 0.01, shard, 64)
    torch.autograd.backward(loss)
    wide = [x.float().requires_grad_() for x in (h, head)]
    expected = 0.01 * torch.nn.functional.cross_entropy(wide[0] @ wide[1][:vocab_size].t(), targets, reduction="sum")
    torch.autograd.backward(expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for got, wanted in zip(leaves, wide, strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert relative_error(got.grad, wanted.grad) <= MAX_RELATIVE_ERROR_BF16
