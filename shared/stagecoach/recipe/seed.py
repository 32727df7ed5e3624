"""The dimensions of a tiny Mistral-shaped model that is made on the spot, so that a run needs no Hub and no GPU."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stagecoach.recipe.base import Section, result


class SeedModel(Section):
    """A model drawn from a seed, with a SentencePiece tokenizer trained on the embedded chat set.

    The defaults are small enough to learn that set by heart on one CPU core in half a minute.
    """

    seed: NonNegativeInt = result(1)
    """Every weight is a function of this number and the tensor's name."""
    vocab_size: PositiveInt = result(2048)
    """Pieces of the tokenizer, the two ChatML tokens and 256 byte pieces included."""
    hidden_size: PositiveInt = result(128)
    """Width of the residual stream."""
    intermediate_size: PositiveInt = result(384)
    """Width inside the MLP."""
    num_layers: Annotated[int, Field(gt=0, le=10_000)] = result(2)
    """Transformer blocks."""
    num_heads: PositiveInt = result(4)
    """Query heads; they divide `hidden_size`."""
    num_kv_heads: PositiveInt = result(2)
    """Key and value heads; they divide `num_heads`."""
    sliding_window: PositiveInt | None = result(64)
    """Tokens that a position sees, itself included; None sees all before it."""
    max_position_embeddings: PositiveInt = result(2048)
    """Longest document that the configuration allows, in tokens."""
    rope_theta: PositiveFloat = result(10_000.0)
    """Base of the rotary frequencies."""
    norm_eps: PositiveFloat = result(1e-5)
    """Epsilon of RMSNorm."""
    init_std: PositiveFloat = result(0.06)
    """Standard deviation of every matrix; output and down projections get it divided by sqrt(2 x num_layers)."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_heads {self.num_heads}: expected an even whole number a head;"
                " change one of the two"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}; change one of the two"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads
