"""AdamW, its exact 16 + 16 bit masters and its random bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stagecoach.architectures.registry import TensorSpec
from stagecoach.formats.masters import join_master
from stagecoach.parallel.slicing import Piece
from stagecoach.recipe.train import TrainConfig
from stagecoach_train import masters, philox
from stagecoach_train.optimizer import AdamW
from stagecoach_train.parallel.parameters import LocalParameter
from stagecoach_train.parallel.shares import shard_rows
from stagecoach_train.state import to_numpy


def parameter(weight: torch.Tensor, *, decays: bool = True) -> LocalParameter:
    """A whole matrix on one rank."""
    rows, columns = weight.shape
    piece = Piece((0, rows), (0, columns), (0, rows), (0, columns))
    return LocalParameter(
        tensor=TensorSpec("layers.0.mlp.down.weight", (rows, columns), "down", 0),
        parameter=nn.Parameter(weight),
        pieces=(piece,),
        num_rows=rows,
        shard=(0, rows),
        held=(0, rows),
        is_counted=True,
        sum_over_tp=False,
        is_twin=False,
        decays=decays,
    )


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 5, generator=generator) for _ in range(steps)]


def start() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(4))


def updated(local: LocalParameter, config: TrainConfig, steps: int, clip: float = 1.0) -> AdamW:
    optimizer = AdamW([local], config)
    for number, grad in enumerate(gradients(steps), start=1):
        optimizer.update([grad.clone()], torch.tensor(clip), lr=1e-2, update=number)
    return optimizer


@pytest.mark.parametrize("decays", [True, False])
def test_twenty_updates_equal_torchs_adamw(decays: bool) -> None:
    config = TrainConfig(weight_decay=0.1, compute_dtype="fp32", betas=(0.9, 0.999))
    local = parameter(start(), decays=decays)
    updated(local, config, 20, clip=0.5)
    reference = nn.Parameter(start())
    torch_adamw = torch.optim.AdamW([reference], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1 if decays else 0.0)
    for grad in gradients(20):
        reference.grad = grad * 0.5
        torch_adamw.step()
    torch.testing.assert_close(local.parameter.data, reference.data, rtol=1e-6, atol=1e-6)


def test_split_masters_follow_fp32_masters_bit_for_bit() -> None:
    config = TrainConfig(weight_decay=0.1, compute_dtype="bf16")
    whole = parameter(start())
    updated(whole, config, 20)
    weight, remainder = torch.empty(4, 5, dtype=torch.bfloat16), torch.empty(4, 5, dtype=torch.int16)
    masters.split_(start(), weight, remainder)
    split = parameter(weight)
    optimizer = AdamW([split], config)
    state = optimizer.state[0].remainder
    assert state is not None
    state.copy_(remainder)
    for number, grad in enumerate(gradients(20), start=1):
        optimizer.update([grad.clone()], torch.tensor(1.0), lr=1e-2, update=number)
    assert torch.equal(masters.join(split.parameter.data, state), whole.parameter.data)


def test_a_factor_that_is_not_finite_changes_nothing() -> None:
    local = parameter(start())
    optimizer = AdamW([local], TrainConfig(compute_dtype="fp32", weight_decay=0.1))
    optimizer.update(gradients(1), torch.tensor(float("nan")), lr=1e-2, update=1)
    assert torch.equal(local.parameter.data, start())
    assert optimizer.state[0].exp_avg.abs().max() == 0.0


@pytest.mark.parametrize(
    ("bits", "weight_bits", "remainder"),
    [
        (0x3F800000, 0x3F80, 0),  # 1.0
        (0x3F807FFF, 0x3F80, 32_767),  # just below the tie: down
        (0x3F808000, 0x3F81, -32_768),  # the tie: away from zero
        (0xBF808000 - 2**32, 0xBF81, -32_768),  # the same below zero
        (0x3F80FFFF, 0x3F81, -1),
        (0x00000001, 0x0000, 1),  # the smallest denormal
    ],
)
def test_masters_split_with_ties_away_from_zero_and_join_exactly(bits: int, weight_bits: int, remainder: int) -> None:
    master = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    weight, rest = torch.empty(1, dtype=torch.bfloat16), torch.empty(1, dtype=torch.int16)
    masters.split_(master, weight, rest)
    assert int(weight.view(torch.int16)[0]) & 0xFFFF == weight_bits
    assert rest.item() == remainder
    assert torch.equal(masters.join(weight, rest).view(torch.int32), master.view(torch.int32))


def test_masters_are_split_as_the_checkpoint_format_joins_them() -> None:
    master = torch.randn(1_000, generator=torch.Generator().manual_seed(5))
    weight, remainder = torch.empty(1_000, dtype=torch.bfloat16), torch.empty(1_000, dtype=torch.int16)
    masters.split_(master, weight, remainder)
    assert np.array_equal(join_master(to_numpy(weight), remainder.numpy()), master.numpy())


def test_stochastic_rounding_is_right_on_average() -> None:
    # 1 + 2^-9 is a quarter of the way from 1 to the next bf16 number, 1 + 2^-7
    wide, rounded = torch.full((100_000,), 1 + 2**-9), torch.empty(100_000, dtype=torch.bfloat16)
    bits = philox.random_bits(seed=1, update=1, tensor=2, elements=torch.arange(100_000))
    masters.round_stochastically_(wide, bits, rounded)
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=0.005)


def test_random_bits_are_those_of_the_published_generator() -> None:
    # known answers of Random123: philox4x32-10, counter and key all ones
    ones = torch.full((1,), -1, dtype=torch.int64)
    words = philox.random_words(2**64 - 1, 2**32 - 1, 2**32 - 1, ones)
    assert [hex(int(word[0])) for word in words] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
    # and with the digits of pi, in which no half of counter or key is like another
    block = torch.tensor([0x85A308D3_243F6A88 - 2**64])
    words = philox.random_words(0x299F31D0_A4093822, 0x13198A2E, 0x03707344, block)
    assert [hex(int(word[0])) for word in words] == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


def test_eight_elements_in_a_row_share_the_words_of_one_block() -> None:
    words = [int(word[0]) for word in philox.random_words(3, 4, 5, torch.tensor([1]))]
    expected = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    assert philox.random_bits(3, 4, 5, torch.arange(8, 16)).tolist() == expected


def test_random_bits_depend_on_element_update_tensor_and_seed() -> None:
    elements = torch.arange(4)
    base = philox.random_bits(1, 1, 1, elements)
    for other in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        assert not torch.equal(base, philox.random_bits(*other, elements))
    assert torch.equal(philox.random_bits(1, 1, 1, elements[2:]), base[2:])


def test_bf16_moments_do_not_depend_on_how_the_matrix_is_cut() -> None:
    config = TrainConfig(compute_dtype="fp32", moments_dtype="bf16", betas=(0.9, 0.999))
    whole = updated(parameter(start()), config, 5)
    part = parameter(start()[:, 2:4].contiguous())
    cut = LocalParameter(
        tensor=TensorSpec("layers.0.mlp.down.weight", (4, 5), "down", 0),
        parameter=part.parameter,
        pieces=(Piece((0, 4), (2, 4), (0, 4), (0, 2)),),
        num_rows=4,
        shard=(0, 4),
        held=(0, 4),
        is_counted=True,
        sum_over_tp=False,
        is_twin=False,
        decays=True,
    )
    optimizer = AdamW([cut], config)
    for number, grad in enumerate(gradients(5), start=1):
        optimizer.update([grad[:, 2:4].contiguous()], torch.tensor(1.0), lr=1e-2, update=number)
    assert torch.equal(optimizer.state[0].exp_avg_sq, whole.state[0].exp_avg_sq[:, 2:4])


def test_rows_are_cut_like_fsdp_cuts_them() -> None:
    assert [shard_rows(10, 4, rank) for rank in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [shard_rows(2, 4, rank) for rank in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]
    assert [len(chunk) for chunk in torch.arange(10).chunk(4)] == [3, 3, 3, 1]
