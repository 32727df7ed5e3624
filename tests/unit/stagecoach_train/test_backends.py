"""Which attention and which compiler a device gets, and what is refused."""

import pytest
import torch

from stagecoach.errors import ConfigError
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.engine import default_compile_backend
from stagecoach_train.parallel.parallelize import attention_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def _config(**fields: object) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 1, **fields})


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "backend", "compiler"),
    [
        (CPU, "fp32", 64, "sdpa", None),
        (CPU, "bf16", 64, "sdpa", None),
        (GPU, "bf16", 64, "varlen", "inductor"),
        (GPU, "bf16", 4, "sdpa", None),
        (GPU, "fp32", 64, "sdpa", None),
    ],
)
def test_flash_attention_is_for_half_width_on_a_gpu(
    device: torch.device, dtype: str, head_dim: int, backend: str, compiler: str | None
) -> None:
    config = _config(compute_dtype=dtype)
    assert attention_backend(config, head_dim, device) == backend
    assert default_compile_backend(config, head_dim, device) == compiler


@pytest.mark.parametrize("attention", ["varlen", "fa4"])
def test_flash_attention_in_fp32_is_refused(attention: str) -> None:
    with pytest.raises(ConfigError, match=r"needs train\.compute_dtype bf16, got fp32"):
        attention_backend(_config(attention=attention, compute_dtype="fp32"), 64, GPU)


@pytest.mark.parametrize("attention", ["varlen", "fa4"])
def test_flash_attention_for_an_odd_head_size_is_refused(attention: str) -> None:
    with pytest.raises(ConfigError, match=r"a multiple of 8, got 20; use auto or sdpa"):
        attention_backend(_config(attention=attention, compute_dtype="bf16"), 20, GPU)
