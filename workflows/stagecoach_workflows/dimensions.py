"""Reads a model's dimensions before anything is downloaded, and refuses a layout that does not fit them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError, DataError
from stagecoach.outputs import open_input
from stagecoach.parallel.fp8_sizes import check_fp8_sizes
from stagecoach.parallel.slicing import RankLayout, check_layout
from stagecoach.recipe.download import DownloadModelConfig
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import DirectorySource, ExportSource, HubSource, S3Source, SeedSource
from stagecoach.settings import Settings
from stagecoach.source_identity import directory_root
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.policy import seed_model

_CONFIG = "config.json"


class ReadsHub(Protocol):
    """Reads a small file of a Hub repository."""

    def read_file(self, source: HubSource, commit: str, path: str) -> str:
        """Return the file's text."""
        ...


def model_spec(
    model: DownloadModelConfig, settings: Settings, read_hub: ReadsHub, find_store: Callable[[], ObjectStore]
) -> ModelSpec:
    """Return the dimensions of the recipe's model; from its config.json alone, no weights are read.

    Raises:
        DataError: The model is of no known family, or its config.json is not valid.
        MissingInputError: There is no config.json.
    """
    if model.seed is not None and isinstance(model.source, SeedSource):
        return seed_model(model.source)
    try:
        values: Mapping[str, Any] = json.loads(_read_config(model, settings, read_hub, find_store))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{_CONFIG} of the model: expected JSON, got: {error}; download it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{_CONFIG} of the model: expected an object, got a {type(values).__name__}; download it again")
    return ModelSpec.from_hf_config(values)


def refuse_layout(spec: ModelSpec, recipe: Recipe) -> None:
    """Return if what the recipe says about ranks and layers fits the model.

    Raises:
        ConfigError: Heads, layers or widths cannot be divided so, a size is none that 8-bit floats can have, or
            `train.recompute` lists another number of layers.
    """
    layout, recompute = recipe.train.layout, recipe.train.recompute
    check_layout(spec, RankLayout(layout.tensor_parallel, layout.pipeline_parallel, layout.virtual_stages))
    if recipe.train.matmul_precision == "fp8_tensorwise":
        check_fp8_sizes(spec, layout.tensor_parallel)
    if isinstance(recompute, tuple) and len(recompute) != spec.num_layers:
        raise ConfigError(
            f"train.recompute: expected one mode, or one for each of the model's {spec.num_layers} layers, got a list of"
            f" {len(recompute)}"
        )


def _read_config(
    model: DownloadModelConfig, settings: Settings, read_hub: ReadsHub, find_store: Callable[[], ObjectStore]
) -> str:
    source = model.source
    if isinstance(source, ExportSource):
        return open_input(find_store(), source.export, settings.scratch_dir).read_bytes(_CONFIG).decode()
    if isinstance(source, DirectorySource):
        return (directory_root(source) / _CONFIG).read_text(encoding="utf-8")
    if isinstance(source, S3Source):
        return open_store(source.url, settings).get(_CONFIG).decode("utf-8")
    if isinstance(source, HubSource):
        return read_hub.read_file(source, model.commit or source.revision, _CONFIG)
    raise DataError(f"a model source of kind {source.kind!r}: expected hub, directory, s3, seed, release or export")
