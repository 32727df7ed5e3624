"""The curve drawers that a recipe may ask for beside the JSONL stream: TensorBoard and Weights & Biases.

They write to local folders, of which all but the artifacts go with the stage, so that what they wrote is put into the
store when they are done.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from stagecoach.errors import ConfigError
from stagecoach.paths import curves_prefix
from stagecoach.recipe.train import TrainConfig
from stagecoach.storage.base import ObjectStore
from stagecoach_train.metrics import CurveSink, Sink

_log = logging.getLogger("stagecoach.train")


_KEPT = {"tensorboard": "*", "wandb": "*run-*/*.wandb"}
"""Drawer -> which of its files are kept; `wandb sync` needs nothing else."""


def open_sinks(
    config: TrainConfig, scratch: Path, artifacts: Path | None, store: ObjectStore, trained: str, attempt: int
) -> tuple[Sink, ...]:
    """Open what the recipe asks for.

    Args:
        config: The train section.
        scratch: Where the drawers write.
        artifacts: Where TensorBoard's events are written, if anywhere outside: they can be watched there, and a killed
            attempt leaves them.
        store: Where the drawers' files are kept.
        trained: Folder of the training's output, with its final slash; its name is what the run is called there.
        attempt: Number of the attempt.

    Raises:
        ConfigError: The library is not installed; the sentence says what to do.
    """
    prefix = curves_prefix(trained, attempt)
    # among the artifacts as in the store: attempts share that folder
    events = scratch / "tensorboard" if artifacts is None else artifacts / prefix / "tensorboard"
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(_tensorboard(events))
    if config.wandb_project is not None:
        name = trained.rstrip("/").rsplit("/", 1)[-1]
        sinks.append(_wandb(config, scratch, name, f"{store.url.rstrip('/')}/{prefix}wandb/"))
    folders = {"tensorboard": events, "wandb": scratch / "wandb"}
    return (*sinks, _Keeper(folders, store, prefix)) if sinks else ()


class _Keeper:
    """Puts the drawers' files into the store; the last sink, so that they are closed by then."""

    def __init__(self, folders: dict[str, Path], store: ObjectStore, prefix: str) -> None:
        self._folders = folders
        self._store = store
        self._prefix = prefix

    def write(self, record: dict[str, Any]) -> None:
        """The drawers have it."""

    def close(self, store_is_away: bool = False) -> None:
        if store_is_away:
            return
        for drawer, folder in self._folders.items():
            for path in sorted(folder.glob(_KEPT[drawer])):
                self._store.put_file(f"{self._prefix}{drawer}/{path.relative_to(folder).as_posix()}", path)
        _log.info("curves are kept in %s/%s", self._store.url.rstrip("/"), self._prefix)


def _tensorboard(folder: Path) -> CurveSink:
    module = _library("torch.utils.tensorboard", "train.tensorboard", "tensorboard")
    writer = module.SummaryWriter(str(folder))
    _log.info("TensorBoard events are written to %s", folder)

    def add(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)

    return CurveSink(add, writer.close)


def _wandb(config: TrainConfig, folder: Path, name: str, kept: str) -> CurveSink:
    module = _library("wandb", "train.wandb_project", "wandb")
    folder.mkdir(parents=True, exist_ok=True)

    def start(mode: str) -> Any:
        # No entity: the account's own default, or WANDB_ENTITY, decides.
        values = config.model_dump(mode="json")
        return module.init(project=config.wandb_project, name=name, dir=str(folder), mode=mode, config=values)

    try:
        run = start("offline" if config.wandb_offline else "online")
    except module.errors.Error as error:
        _log.warning("W&B cannot be reached (%s); its files will lie in %s: sync them with `wandb sync`", error, kept)
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
