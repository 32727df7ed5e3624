"""8-bit products against the same products in fp32: literal values, error bounds, recompute, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stagecoach.errors import ConfigError
from stagecoach.parallel.topology import Topology
from stagecoach.recipe.train import RecomputeMode, TrainConfig
from stagecoach_train.batch import MicroBatchShape
from stagecoach_train.engine import Engine
from stagecoach_train.model import fp8
from stagecoach_train.planning import refuse_uneven
from tests.distributed.training_cases import SHAPE, initial_weights, micro_batch, reader, tiny_spec

COMPILER = "aot_eager_decomp_partition"
FP8 = {"compute_dtype": "bf16", "matmul_precision": "fp8_tensorwise"}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def test_values_are_rounded_to_what_eight_bits_hold() -> None:
    x = torch.tensor([[448.0, 1.0, 1.06, 1.07, -0.001, 0.0]]).bfloat16()
    scale = fp8.scale_of(x, fp8.INPUT_DTYPE)
    assert scale.item() == 1.0
    # Between 1 and 2 e4m3 has steps of 1/8; its least value is 2^-9.
    assert fp8.narrowed(x, scale, fp8.INPUT_DTYPE).float().tolist() == [[448.0, 1.0, 1.0, 1.125, -0.001953125, 0.0]]


def test_the_largest_value_uses_the_whole_range() -> None:
    x = torch.tensor([[-3.0, 1.5, 0.75]]).bfloat16()
    scale = fp8.scale_of(x, fp8.GRADIENT_DTYPE)
    assert scale.item() == pytest.approx(3.0 / 57_344)
    assert fp8.narrowed(x, scale, fp8.GRADIENT_DTYPE).float().tolist() == [[-57_344.0, 28_672.0, 14_336.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    x = torch.ones(16, 16).bfloat16()
    x[3, 4] = value
    assert not fp8.product(x, torch.ones(16, 16).bfloat16()).isfinite().all()


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(16, 32).bfloat16().requires_grad_()
    weight = torch.zeros(48, 32).bfloat16().requires_grad_()
    y = fp8.product(x, weight)
    torch.autograd.backward(y.sum())
    assert y.abs().max() == 0
    assert x.grad is not None
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_and_its_gradients_are_near_those_of_fp32(has_bias: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(64, 96), torch.randn(48, 96) * 0.02, torch.randn(48) * 0.1][: 2 + has_bias]
    narrow = [x.bfloat16().requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    weight_of_output = torch.randn(64, 48)
    y, expected = fp8.product(*narrow), F.linear(*wide)
    torch.autograd.backward((y * weight_of_output.bfloat16()).sum())
    torch.autograd.backward((expected * weight_of_output).sum())
    assert y.dtype == torch.bfloat16
    assert 0.01 <= relative_error(y.detach(), expected.detach()) <= 0.05  # 3 bits of mantissa on both sides
    for got, wanted in zip(narrow, wide, strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert got.grad.dtype == torch.bfloat16
        assert relative_error(got.grad, wanted.grad) <= 0.08  # 2 bits on the gradient's side


def state_after_two_steps(
    recompute: RecomputeMode, compile_backend: str | None
) -> tuple[list[float], list[torch.Tensor]]:
    spec = tiny_spec(num_layers=2)
    config = TrainConfig.model_validate({"steps": 4, "recompute": recompute, "attention": "varlen", **FP8})
    engine = Engine(
        config, spec, Topology(), torch.device("cpu"), num_micro_batches=1, shape=SHAPE, compile_backend=compile_backend
    )
    engine.load_weights(reader(initial_weights(spec)))
    batches = [micro_batch(number) for number in range(2)]
    losses = [engine.train_step([batch], batch.num_targets, 1e-3).loss_sum / batch.num_targets for batch in batches]
    return losses, [torch.from_numpy(piece.tensor.view("u1").copy()) for piece in engine.state_pieces()]


@pytest.fixture(scope="module")
def kept() -> tuple[list[float], list[torch.Tensor]]:
    return state_after_two_steps("none", COMPILER)


@pytest.mark.parametrize("recompute", ["selective", "selective_mlp", "full"])
def test_recompute_changes_no_bit(recompute: RecomputeMode, kept: tuple[list[float], list[torch.Tensor]]) -> None:
    losses, state = state_after_two_steps(recompute, COMPILER)
    assert losses == kept[0]
    assert all(torch.equal(a, b) for a, b in zip(state, kept[1], strict=True))


def test_a_compiled_block_computes_the_same_products(kept: tuple[list[float], list[torch.Tensor]]) -> None:
    losses, _ = state_after_two_steps("none", None)
    assert losses == pytest.approx(kept[0], rel=2e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compute_dtype": "fp32"}, "needs compute_dtype bf16, got fp32"),
        ({"async_tp": True}, "cannot be used with async_tp"),
        ({"layout": {"pipeline_parallel": 2, "zero_bubble": True}}, "cannot be used with layout.zero_bubble"),
    ],
)
def test_what_cannot_be_combined_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate({**FP8, **fields})


def test_sizes_that_eight_bits_do_not_have_are_refused() -> None:
    config = TrainConfig.model_validate({"steps": 4, **FP8})
    with pytest.raises(ConfigError, match="multiples of 16, got 100 as intermediate size"):
        Engine(
            config,
            tiny_spec(intermediate_size=100),
            Topology(),
            torch.device("cpu"),
            num_micro_batches=1,
            shape=SHAPE,
        )
    shape = MicroBatchShape.of(pack_tokens=1000, micro_batch_packs=1, max_documents_per_pack=4)
    with pytest.raises(ConfigError, match="multiple of 16 tokens, got 1000"):
        refuse_uneven(config, shape, 1)
