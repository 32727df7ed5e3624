"""The written formula for MFU, checked by hand; and the keys that documents attend to."""

from __future__ import annotations

import numpy as np
import pytest

from stagecoach.architectures.registry import ModelSpec
from stagecoach_train.feed import attended_keys
from stagecoach_train.throughput import flops, matrix_weights, peak_flops

MISTRAL_7B = ModelSpec(
    family="mistral",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=32000,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=4096,
)


def test_the_weights_of_mistral_7b_without_its_embedding() -> None:
    # a layer: 4096 x (4096 + 2 x 1024) + 4096 x 4096 + 3 x 4096 x 14336 = 218,103,808; head: 32000 x 4096
    assert matrix_weights(MISTRAL_7B) == 32 * 218_103_808 + 131_072_000


def test_the_formula_agrees_with_the_one_in_terms_of_the_mean_length() -> None:
    """6 N + 6 L d S a token, S being twice the mean number of keys; one document of 1,000 tokens."""
    keys = int(attended_keys(np.array([1000]), 4096)[0])
    assert keys == 500_500
    expected = 1000 * (6 * 7_110_393_856 + 6 * 32 * 4096 * 1001)
    assert flops(MISTRAL_7B, 1000, keys) == pytest.approx(expected)


@pytest.mark.parametrize(("length", "window", "keys"), [(4, None, 10), (4, 8, 10), (4, 1, 4), (6, 3, 15), (0, 3, 0)])
def test_attended_keys(length: int, window: int | None, keys: int) -> None:
    assert attended_keys(np.array([length]), window).tolist() == [keys]  # 6, 3: 1 + 2 + 3 + 3 + 3 + 3


def test_peaks_by_device_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("Some other card") is None
