"""Finds every error of a recipe before any work is done: sources, store, workflow, and whether layout and model fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stagecoach.errors import ConfigError, StagecoachError
from stagecoach.recipe.download import DownloadModelConfig
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import ExportSource, ReleaseSource
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.decisions import Candidate, candidates, decide, task_configs
from stagecoach_workflows.deployment import Deployment
from stagecoach_workflows.dimensions import model_spec, refuse_layout
from stagecoach_workflows.plan import HubLister
from stagecoach_workflows.policy import Shape, task_policy
from stagecoach_workflows.render import template_document


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


def _sources(recipe: Recipe, settings: Settings, list_hub: HubLister, store_url: str) -> tuple[str, Any]:
    in_store = isinstance(recipe.model.source, ReleaseSource | ExportSource)
    configs = task_configs(recipe, settings, list_hub, open_store(store_url, settings) if in_store else None)
    files = [file for config in configs.values() for file in getattr(config, "files", ())]
    gigabytes = sum(file.size_bytes for file in files) / 1e9
    return f"sources: {len(files)} files, {gigabytes:.2f} GB", configs


def _layout(
    recipe: Recipe, model: DownloadModelConfig, settings: Settings, list_hub: HubLister, store_url: str
) -> tuple[str, None]:
    spec = model_spec(model, settings, list_hub, lambda: open_store(store_url, settings))
    _compare_size(Shape.of(recipe).num_parameters, spec.num_parameters)
    refuse_layout(spec, recipe)
    ranks = recipe.train.layout.world_size
    return f"model: {spec.family}, {spec.num_parameters:,} parameters, fits the layout of {ranks} ranks", None


def _compare_size(expected: int, found: int) -> None:
    """Refuse a model whose pods would ask for less than half, or more than twice, of what it needs."""
    if not found / 2 <= expected <= found * 2:
        raise ConfigError(
            f"model.num_parameters: the pods would be sized for {expected:,} parameters, the model has {found:,}:"
            f" write num_parameters: {found}"
        )


def _store(url: str, settings: Settings, tasks: Mapping[str, Candidate], recipe: Recipe) -> tuple[str, None]:
    store = open_store(url, settings)
    if isinstance(store, LocalStore):
        _refuse_read_only(store)
    plans = decide(store, tasks, recipe, settings)
    to_run = [task for task, plan in plans.items() if plan.decision == "run"]
    return f"store: {store.url} answers; {len(to_run)} of {len(plans)} tasks have something to do", None


def _refuse_read_only(store: LocalStore) -> None:
    folder = next(path for path in (store.root, *store.root.parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{store.url}: expected a folder that can be written, got {folder}; choose another --store")


def _workflow(recipe: Recipe, deployment: Deployment) -> tuple[str, None]:
    name = template_document(recipe, deployment)["metadata"]["name"]
    asked = task_policy("train", Shape.of(recipe)).resources
    gpus = f", {asked.gpus} GPUs" if asked.gpus else ""
    return f"workflow: {name}; train asks each node for {asked.cpu:g} cores, {asked.memory_gib:g} GiB{gpus}", None


def _joined(errors: list[StagecoachError]) -> StagecoachError:
    """Return one error of the first one's kind that says all sentences, a line each."""
    if len(errors) == 1:
        return errors[0]
    joined = type("Errors", (StagecoachError,), {"exit_code": errors[0].exit_code})
    error: StagecoachError = joined("\n".join(str(error) for error in errors))
    return error
