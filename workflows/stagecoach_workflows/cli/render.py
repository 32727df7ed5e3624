"""``stagecoach render``: the YAML, or the batch scripts, that a cluster gets for a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stagecoach_workflows.cli import options

_RENDERED = Path(__file__).parents[1] / "rendered"


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(render)


def render(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.", show_default=False)
    ] = "",
    settings: options.Settings = None,
    every: Annotated[bool, typer.Option("--all", help="Write every shipped recipe to the rendered folder.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write here; for SLURM a folder."),
    ] = None,
    alias: Annotated[
        bool, typer.Option("--alias", help="Add the same template under its name without digest.")
    ] = False,
    cron: Annotated[
        list[str] | None,
        typer.Option("--cron", metavar="SCHEDULE", help="Add the alias and a CronWorkflow (UTC).", show_default=False),
    ] = None,
    deployment: options.DeploymentFile = None,
    images: options.ImagesFile = None,
    runner: Annotated[Literal["argo", "slurm"], typer.Option(help="Which kind of cluster.")] = "argo",
    slurm: options.SlurmFile = None,
    store: Annotated[
        str, typer.Option("--store", metavar="URL", help="Where everything is kept, for SLURM.", show_default=False)
    ] = "",
) -> None:
    """Write the WorkflowTemplate of a recipe as YAML, or the batch scripts of a SLURM cluster and their submit.sh."""
    from stagecoach.errors import ConfigError
    from stagecoach_workflows.deployment import load_deployment
    from stagecoach_workflows.output_file import write_output_file
    from stagecoach_workflows.recipes_shipped import load_recipe, shipped_names
    from stagecoach_workflows.render import alias_document, cron_document, template_document, to_yaml

    if bool(recipe) == every:
        raise ConfigError("render: expected a RECIPE, or --all for every shipped one")
    cluster = load_deployment(deployment, images)
    if runner == "slurm":
        from stagecoach.settings import Settings
        from stagecoach.storage.open import open_store
        from stagecoach_workflows.slurm.config import load_slurm_config
        from stagecoach_workflows.slurm.scripts import Scripts

        if every or output is None:
            raise ConfigError("render --runner slurm: expected a RECIPE and a folder: --output DIR")
        url = open_store(store, Settings.from_environ()).url if store else cluster.store
        Scripts.of(load_recipe(recipe, settings or ()), cluster, load_slurm_config(slurm), url).write(output)
        return
    if every:
        folder = output or _RENDERED
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output: expected a folder, cannot make {folder}: {error.strerror}") from error
        for name in shipped_names():
            text = to_yaml([template_document(load_recipe(name), cluster)])
            write_output_file(folder / f"{name}.yaml", text.encode(), "--output")
        return
    loaded = load_recipe(recipe, settings or ())
    documents = [template_document(loaded, cluster)]
    if alias or cron:
        documents.append(alias_document(documents[0], loaded))
    if cron:
        documents.append(cron_document(loaded, cron, {}))
    if output is None:
        typer.echo(to_yaml(documents), nl=False)
    else:
        write_output_file(output, to_yaml(documents).encode(), "--output")
