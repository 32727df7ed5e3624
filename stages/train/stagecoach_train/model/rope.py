"""Rotary positions, half-split as the Hub's Llama does it, with theta, linear and llama3 scaling.

What is turned by which angle:

    RoFormer (Su et al. 2021):  angle(position, i) = position / theta^(2 i / head_dim),  i = 0 .. head_dim/2 - 1
    element i of the first half and element i of the second half are one pair that is turned by that angle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stagecoach.errors import ConfigError

# T tokens of the flat stream, F = head_dim / 2 frequencies


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosine and sine of every token's angles, shaped [T, 1, F] so that they broadcast over heads."""

    cos_T1F: torch.Tensor
    sin_T1F: torch.Tensor


def inverse_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None) -> torch.Tensor:
    """Return 1 / theta^(2i/head_dim) after scaling: fp32 [F].

    Raises:
        ConfigError: The scaling's type is not one of default, linear, llama3.
    """
    frequencies_F = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    kind = "default" if not scaling else scaling.get("rope_type", scaling.get("type", "default"))
    if scaling is None or kind == "default":
        return frequencies_F
    if kind == "linear":
        return frequencies_F / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies_F, scaling)
    raise ConfigError(f"rope scaling {kind!r} is not supported; expected default, linear or llama3")


def _llama3(frequencies_F: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Slow rotations down by the factor, keep fast ones, and blend in between (Llama 3.1)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original_context = int(scaling["original_max_position_embeddings"])
    wavelengths_F = 2 * math.pi / frequencies_F
    blend_F = (original_context / wavelengths_F - low) / (high - low)
    blended_F = (1 - blend_F) * frequencies_F / factor + blend_F * frequencies_F
    scaled_F = torch.where(wavelengths_F > original_context / low, frequencies_F / factor, blended_F)
    return torch.where(wavelengths_F < original_context / high, frequencies_F, scaled_F)


def rotary_table(positions_T: torch.Tensor, frequencies_F: torch.Tensor, dtype: torch.dtype) -> Rotary:
    """Return cosines and sines for these positions, computed and kept in `dtype` (fp32, or fp64 for parity runs)."""
    angles_TF = positions_T.to(dtype)[:, None] * frequencies_F.to(dtype)[None, :]
    return Rotary(angles_TF.cos()[:, None, :].contiguous(), angles_TF.sin()[:, None, :].contiguous())


def rotate(x_THD: torch.Tensor, cos_T1F: torch.Tensor, sin_T1F: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys [T, heads, head_dim] by their positions, in the table's dtype; returns x's dtype."""
    first_THF, second_THF = x_THD.to(cos_T1F.dtype).chunk(2, dim=-1)
    turned_THD = torch.cat(
        [first_THF * cos_T1F - second_THF * sin_T1F, second_THF * cos_T1F + first_THF * sin_T1F], dim=-1
    )
    return turned_THD.to(x_THD.dtype)
