"""``stagecoach report``: the page of a run, from the bucket alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagecoach_workflows.cli import options
from stagecoach_workflows.cli.bucket import open_bucket

Price = Annotated[
    float | None,
    typer.Option("--price", metavar="USD", help="Price of an hour of one GPU; a table without it.", show_default=False),
]


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(report)


def report(
    run_id: options.RunArgument,
    store: options.Store = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; report-RUN.html without it.", show_default=False
        ),
    ] = None,
    price: Price = None,
) -> None:
    """Write the report of a run as one HTML page without script: curves, cost, data, origin, answers."""
    from stagecoach.errors import ConfigError
    from stagecoach_workflows.output_file import check_output_file, write_output_file
    from stagecoach_workflows.report.facts import gather
    from stagecoach_workflows.report.page import run_page

    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--price: expected dollars for an hour of one GPU, 0 or more, got {price}")
    if output is not None:
        check_output_file(output, "--output")
    opened = open_bucket(store)
    file = output or Path(f"report-{run_id}.html")
    write_output_file(file, run_page(gather(opened, run_id, price)), "--output")
    typer.echo(str(file))
