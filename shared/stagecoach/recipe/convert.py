"""The convert section of a recipe: how Hub weights become native weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from stagecoach.recipe.base import Section, result


class ConvertConfig(Section):
    """What ``convert`` may change."""

    dtype: Literal["source", "fp32", "bf16"] = result("source")
    """Type in which the native weights are stored. ``source`` loses nothing: bf16 stays bf16, fp32 and fp16
    become fp32."""
    new_row_noise: Annotated[float, Field(ge=0.0, le=1.0)] = result(0.1)
    """New vocabulary rows are the mean of the old ones plus noise of this share of the old rows' spread
    around it; 0 makes all new rows equal."""
    seed: NonNegativeInt = result(0)
    """Seed of that noise."""
    allow_non_finite: bool = result(False)
    """Accept weights that hold NaN or Inf instead of refusing them by name."""
