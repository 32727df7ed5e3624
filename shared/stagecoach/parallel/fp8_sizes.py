"""Which sizes products in 8-bit floats can have, known before any work is done and without torch."""

from __future__ import annotations

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError

FP8_MULTIPLE = 16
"""Every size of a product must be a multiple of this (torch._scaled_mm)."""


def check_fp8_sizes(spec: ModelSpec, num_tensor_ranks: int) -> None:
    """Return if a rank's products can be made in 8-bit floats.

    Raises:
        ConfigError: A size is no multiple of 16.
    """
    sizes = {
        "hidden size": spec.hidden_size,
        "rows of queries, keys and values": spec.qkv_rows // num_tensor_ranks,
        "columns of the attention's output": spec.num_heads * spec.head_dim // num_tensor_ranks,
        "intermediate size": spec.intermediate_size // num_tensor_ranks,
    }
    for what, size in sizes.items():
        if size % FP8_MULTIPLE:
            raise ConfigError(
                f"train.matmul_precision fp8_tensorwise needs multiples of {FP8_MULTIPLE}, got {size} as {what} of a rank;"
                " set it to compute_dtype, or change layout.tensor_parallel"
            )
