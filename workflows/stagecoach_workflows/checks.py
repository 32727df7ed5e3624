"""Finds every error of a recipe before any work is done: sources, store, workflow, and whether layout and model fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stagecoach.architectures.registry import ModelSpec
from stagecoach.errors import ConfigError, DataError, StagecoachError
from stagecoach.outputs import open_input
from stagecoach.parallel.slicing import RankLayout, check_layout
from stagecoach.recipe.download import DownloadModelConfig
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import DirectorySource, ExportSource, HubSource, ReleaseSource, S3Source, SeedSource
from stagecoach.settings import Settings
from stagecoach.source_identity import directory_root
from stagecoach.storage.open import open_store
from stagecoach_workflows.decisions import Candidate, candidates, decide, task_configs
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.plan import HubLister
from stagecoach_workflows.policy import Shape, seed_model, task_policy
from stagecoach_workflows.render import template_document

_CONFIG = "config.json"


def check_recipe(recipe: Recipe, store_url: str, deployment: Deployment) -> list[str]:
    """Return what was found to be right, a line each.

    Raises:
        StagecoachError: The first error; of several independent ones all sentences, and the exit code of the first.
    """
    settings = Settings.from_environ()
    list_hub = HubLister(settings)
    found: list[str] = []
    errors: list[StagecoachError] = []

    def attempt(check: Any, *arguments: Any) -> Any:
        try:
            line, value = check(*arguments)
        except StagecoachError as error:
            errors.append(error)
            return None
        found.append(line)
        return value

    configs = attempt(_sources, recipe, settings, list_hub, store_url)
    if configs is not None:
        model = configs["download-model"]
        attempt(_layout, recipe, model, settings, list_hub, store_url)
        attempt(_store, store_url, settings, candidates(recipe, configs), recipe)
    attempt(_workflow, recipe, deployment)
    if errors:
        raise _joined(errors)
    return found


def model_spec(model: DownloadModelConfig, settings: Settings, list_hub: HubLister, store_url: str) -> ModelSpec:
    """Return the dimensions of the recipe's model; from its config.json alone, no weights are read.

    Raises:
        DataError: The model is of no known family, or its config.json is not valid.
        MissingInputError: There is no config.json.
    """
    if model.seed is not None and isinstance(model.source, SeedSource):
        return seed_model(model.source)
    text = _read_config(model, settings, list_hub, store_url)
    try:
        values: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise DataError(f"{_CONFIG} of the model: expected JSON, got: {error}") from error
    return ModelSpec.from_hf_config(values)


def _sources(recipe: Recipe, settings: Settings, list_hub: HubLister, store_url: str) -> tuple[str, Any]:
    in_store = isinstance(recipe.model.source, ReleaseSource | ExportSource)
    configs = task_configs(recipe, settings, list_hub, open_store(store_url, settings) if in_store else None)
    files = [file for config in configs.values() for file in getattr(config, "files", ())]
    gigabytes = sum(file.size_bytes for file in files) / 1e9
    return f"sources: {len(files)} files, {gigabytes:.2f} GB", configs


def _layout(
    recipe: Recipe, model: DownloadModelConfig, settings: Settings, list_hub: HubLister, store_url: str
) -> tuple[str, None]:
    spec = model_spec(model, settings, list_hub, store_url)
    _compare_size(Shape.of(recipe).num_parameters, spec.num_parameters)
    layout = recipe.train.layout
    check_layout(spec, RankLayout(layout.tensor_parallel, layout.pipeline_parallel, layout.virtual_stages))
    return (
        f"model: {spec.family}, {spec.num_parameters:,} parameters, fits the layout of {layout.world_size} ranks",
        None,
    )


def _compare_size(expected: int, found: int) -> None:
    """Refuse a model whose pods would ask for less than half, or more than twice, of what it needs."""
    if not found / 2 <= expected <= found * 2:
        raise ConfigError(
            f"model.num_parameters: the pods would be sized for {expected:,} parameters, the model has {found:,}:"
            f" write num_parameters: {found}"
        )


def _store(url: str, settings: Settings, tasks: Mapping[str, Candidate], recipe: Recipe) -> tuple[str, None]:
    store = open_store(url, settings)
    plans = decide(store, tasks, recipe)
    to_run = [task for task, plan in plans.items() if plan.decision == "run"]
    return f"store: {store.url} answers; {len(to_run)} of {len(plans)} tasks have something to do", None


def _workflow(recipe: Recipe, deployment: Deployment) -> tuple[str, None]:
    name = template_document(recipe, deployment)["metadata"]["name"]
    asked = task_policy("train", Shape.of(recipe)).resources
    gpus = f", {asked.gpus} GPUs" if asked.gpus else ""
    return f"workflow: {name}; train asks each node for {asked.cpu:g} cores, {asked.memory_gib:g} GiB{gpus}", None


def _read_config(model: DownloadModelConfig, settings: Settings, list_hub: HubLister, store_url: str) -> str:
    source = model.source
    if isinstance(source, ExportSource):
        return (
            open_input(open_store(store_url, settings), source.export, settings.scratch_dir)
            .read_bytes(_CONFIG)
            .decode()
        )
    if isinstance(source, DirectorySource):
        return (directory_root(source) / _CONFIG).read_text(encoding="utf-8")
    if isinstance(source, S3Source):
        return open_store(source.url, settings).get(_CONFIG).decode("utf-8")
    if isinstance(source, HubSource):
        return list_hub.read_file(source, model.commit or source.revision, _CONFIG)
    raise DataError(f"a model source of kind {source.kind!r}: expected hub, directory, s3, seed, release or export")


def _joined(errors: list[StagecoachError]) -> StagecoachError:
    """Return one error of the first one's kind that says all sentences, a line each."""
    if len(errors) == 1:
        return errors[0]
    joined = type("Errors", (StagecoachError,), {"exit_code": errors[0].exit_code})
    error: StagecoachError = joined("\n".join(str(error) for error in errors))
    return error
