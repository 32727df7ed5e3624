"""``stagecoach preview`` and ``data-stats``: what the model will see of chat data, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stagecoach_workflows.cli import options


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(preview)
    commands.command(name="data-stats")(data_stats)


def preview(
    recipe: options.Recipe,
    rows: Annotated[int, typer.Option(min=1, metavar="NUM", help="Conversations of each source.")] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Show every token with its id.")] = False,
    settings: options.Settings = None,
    store: options.Store = "",
    work: options.Work = options.DEFAULT_WORK,
) -> int:
    """Show the first conversations of a recipe as they are packed, trained tokens green.

    Tokenizer and data are downloaded into the store if they are not there yet; a run takes them from it.
    """
    arguments = ["preview", "--rows", str(rows), *(["--ids"] if ids else [])]
    return _look(arguments, recipe, settings, store, work, with_data=True)


def data_stats(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Chat files, or folders of them.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="RECIPE", help="The recipe whose tokenizer and chat form count.")
    ] = "tiny-cpu",
    settings: options.Settings = None,
    store: options.Store = "",
    work: options.Work = options.DEFAULT_WORK,
) -> int:
    """Count the rows and tokens of chat files: of each file, and of all together."""
    names = [str(file.absolute()) for file in files]  # none of them begins with a dash
    return _look(["statistics", *names], recipe, settings, store, work, with_data=False)


def _look(
    arguments: list[str], recipe: str, settings: list[str] | None, store: str, work: Path, *, with_data: bool
) -> int:
    from stagecoach.recipe.tasks import PackTaskConfig
    from stagecoach.settings import Settings
    from stagecoach.storage.open import open_store
    from stagecoach_workflows.looking import StageFailed, bring, look
    from stagecoach_workflows.plan import HubLister
    from stagecoach_workflows.recipes_shipped import load_recipe

    loaded, environment = load_recipe(recipe, settings or ()), Settings.from_environ()
    opened = open_store(store or str(work.absolute() / "store"), environment)
    config = PackTaskConfig(data=loaded.data, pack=loaded.pack).model_dump(mode="json")
    try:
        inputs = bring(loaded, opened, environment, HubLister(environment), with_data=with_data)
        look([*arguments, "--store", opened.url], json.dumps({"config": config, "inputs": inputs}))
    except StageFailed as failed:
        return failed.exit_code
    return 0
