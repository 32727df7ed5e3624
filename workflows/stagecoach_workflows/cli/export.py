"""``stagecoach export``: the model of a run as it is now, also while the run is still training."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from stagecoach_workflows.cli import options
from stagecoach_workflows.cli.bucket import open_bucket


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(export)


def export(
    run_id: options.RunArgument,
    iteration: Annotated[
        str, typer.Option(metavar="NUM", help="A number of steps, last, or best (lowest held-out loss).")
    ] = "last",
    store: options.Store = "",
) -> int:
    """Export a checkpoint of a run here, also while it is still training; releases and pushes nothing.

    The run is not disturbed, and what it exports in the end is another folder. Without a release of it, gc takes the
    early export after seven days.
    """
    from stagecoach.errors import ConfigError
    from stagecoach.plan_file import read_plan
    from stagecoach.settings import Settings
    from stagecoach_workflows.early_export import early_export, run_early_export
    from stagecoach_workflows.looking import StageFailed

    if iteration not in ("last", "best") and not iteration.isdecimal():
        raise ConfigError(f"--iteration: expected a number, last or best, got {iteration[:80]!r}")
    wanted = int(iteration) if iteration.isdecimal() else cast(Literal["last", "best"], iteration)
    opened = open_bucket(store)
    scratch = Settings.from_environ().scratch_dir
    asked = early_export(opened, read_plan(opened, run_id), wanted, scratch)
    try:
        run_early_export(opened, asked)
    except StageFailed as failed:
        return failed.exit_code
    typer.echo(f"{opened.url.rstrip('/')}/{asked.output}")
    return 0
