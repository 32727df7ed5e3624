"""The model section of a recipe: where the base model and its tokenizer come from, and how conversations are
written for it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stagecoach.paths import validate_name
from stagecoach.recipe.base import Section, placement, result
from stagecoach.recipe.source import DirectorySource, ExportSource, HubSource, ReleaseSource, S3Source, SeedSource

ModelSource = Annotated[
    HubSource | DirectorySource | S3Source | SeedSource | ReleaseSource | ExportSource, Field(discriminator="kind")
]
"""Where a model may come from; ``kind`` says which of the six."""

TokenizerSource = Annotated[HubSource | DirectorySource | S3Source, Field(discriminator="kind")]
"""Where a tokenizer may come from that is not the model's own."""


class ModelConfig(Section):
    """The base model; ``model: release:NAME`` is short for the source of kind release, under the release's name."""

    name: str = placement()
    """Short name for people, part of output folders: 1 to 63 of a-z, 0-9, '.', '_', '-'."""
    num_parameters: int | None = placement(None, ge=1)
    """Parameters of the base model, tied ones once, for the memory and disk that its pods ask for; None takes a model
    that is made from a seed as it is, and any other for one of 7 billion. ``stagecoach check`` compares it."""
    source: ModelSource = result()
    """Where the weights and config.json come from, and the tokenizer unless ``tokenizer`` is given."""
    tokenizer: TokenizerSource | None = result(None)
    """Where the tokenizer comes from; None takes it from ``source``."""
    chat_format: Literal["chatml", "tokenizer"] = result("chatml")
    """chatml: ``<|im_start|>role .. <|im_end|>``, the two tokens added where they are missing; tokenizer: the
    chat template that the tokenizer brings."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        kind, separator, name = values.partition(":")
        if kind != "release" or not separator:
            raise ValueError(f"expected a section, or release:NAME, got {values[:120]!r}")
        return {"name": validate_name(name, "release name"), "source": {"kind": "release", "name": name}}

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return validate_name(name, "model name")
