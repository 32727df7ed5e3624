"""The whole-run configuration: one file, one section a stage."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from stagecoach.paths import validate_name
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.recipe.data import DataConfig
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.model import ModelConfig
from stagecoach.recipe.pack import PackConfig
from stagecoach.recipe.shard import ShardConfig
from stagecoach.recipe.train import TrainConfig


class Recipe(BaseModel):
    """Everything that a run is told; immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str
    """Name of the recipe, part of workflow names."""
    description: str = ""
    """One or two sentences for people."""
    model: ModelConfig
    """The base model, its tokenizer and chat format."""
    data: DataConfig
    """The chat data."""
    convert: ConvertConfig = ConvertConfig()
    """Hub weights to native weights."""
    shard: ShardConfig = ShardConfig()
    """Native weights to one file a rank."""
    pack: PackConfig
    """Chat data to packs of tokens."""
    train: TrainConfig
    """The training itself."""
    export: ExportConfig = ExportConfig()
    """The trained weights to a Hub directory."""

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        return validate_name(name, "recipe name")

    @model_validator(mode="after")
    def _shard_as_train(self) -> Self:
        """Fill the shard layout that the recipe leaves open with the one that train uses."""
        layout = self.train.layout
        wanted = {
            "tensor_parallel": layout.tensor_parallel,
            "pipeline_parallel": layout.pipeline_parallel,
            "virtual_stages": layout.virtual_stages,
        }
        changes = {
            name: value
            for name, value in wanted.items()
            if name in ShardConfig.model_fields and getattr(self.shard, name) is None
        }
        if changes:
            object.__setattr__(self, "shard", self.shard.model_copy(update=changes))
        return self
