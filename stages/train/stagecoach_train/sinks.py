"""The curve drawers that a recipe may ask for beside the JSONL stream: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from stagecoach.errors import ConfigError
from stagecoach.recipe.train import TrainConfig
from stagecoach_train.metrics import CurveSink, Sink

_log = logging.getLogger("stagecoach.train")


def open_sinks(config: TrainConfig, folder: Path, name: str) -> tuple[Sink, ...]:
    """Open what the recipe asks for.

    Args:
        config: The train section.
        folder: Where event files go.
        name: What the run is called there.

    Raises:
        ConfigError: The library is not installed; the sentence says what to do.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(_tensorboard(folder / "tensorboard"))
    if config.wandb_project is not None:
        sinks.append(_wandb(config, folder, name))
    return tuple(sinks)


def _tensorboard(folder: Path) -> CurveSink:
    module = _library("torch.utils.tensorboard", "train.tensorboard", "tensorboard")
    writer = module.SummaryWriter(str(folder))
    _log.info("TensorBoard events: %s", folder)

    def add(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)

    return CurveSink(add, writer.close)


def _wandb(config: TrainConfig, folder: Path, name: str) -> CurveSink:
    module = _library("wandb", "train.wandb_project", "wandb")
    folder.mkdir(parents=True, exist_ok=True)

    def start(mode: str) -> Any:
        # No entity: the account's own default, or WANDB_ENTITY, decides.
        values = config.model_dump(mode="json")
        return module.init(project=config.wandb_project, name=name, dir=str(folder), mode=mode, config=values)

    try:
        run = start("offline" if config.wandb_offline else "online")
    except module.errors.Error as error:
        _log.warning("W&B cannot be reached (%s); its files stay in %s: sync them with `wandb sync`", error, folder)
        run = start("offline")

    def add(curve: str, value: float, step: int) -> None:
        run.log({curve: value}, step=step)

    return CurveSink(add, run.finish)


def _library(module: str, field: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{field}: needs the package {package}; install it (pip install {package}) or unset the field"
        ) from error
