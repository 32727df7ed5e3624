"""The pack section of a recipe: how long a pack is, which tokens are trained, what is held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stagecoach.recipe.base import Section, result

TooLong = Literal["split", "truncate", "drop", "error"]
"""What happens to a conversation longer than a pack.

split: cut before a message where one fits, else in the middle, and keep all pieces; truncate: keep the first pack;
drop: leave it out; error: stop. A cut answer never gets its end token trained. The report counts each of them.
"""

TrainOn = Literal["assistant", "user", "all", "last"]
"""Whose messages are targets: the assistant's, the user's, every message, or only the last answer of a conversation."""


class PackConfig(Section):
    """Everything about the pack stage but the data."""

    pack_tokens: Annotated[int, Field(ge=8, le=2**22)] = result()
    """Token slots of a pack, and so the longest conversation."""
    too_long: TooLong = result()
    """What happens to a conversation longer than that; explicit in every recipe."""
    max_documents_per_pack: PositiveInt = result(1024)
    """Most conversations in a pack; bounds the tables that attention needs."""
    train_on: TrainOn = result("assistant")
    """Which messages are targets; a message's own ``weight`` of 0 or 1 wins."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = result(0.0)
    """Share of the conversations held out for evaluation, chosen by a stable hash of their messages: the same ones when
    data grows. Near copies (letter case, spacing, another system message) go together."""
    heldout_num: NonNegativeInt | None = result(None)
    """Number of conversations to hold out, instead of a share: those with the smallest hashes, so that new data may
    replace some of them."""
    seed: NonNegativeInt = result(0)
    """Seed of the order of packs and of conversations inside them."""

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> PackConfig:
        if self.heldout_num is not None and self.heldout_share > 0:
            raise ValueError(
                f"give heldout_share or heldout_num, not both, got {self.heldout_share} and {self.heldout_num}"
            )
        return self
