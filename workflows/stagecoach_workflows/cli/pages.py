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
    from stagecoach_workflows.report.facts import gather
    from stagecoach_workflows.report.page import run_page

    file = output or Path(f"report-{run_id}.html")
    file.write_bytes(run_page(gather(open_bucket(store), run_id, price)))
    typer.echo(str(file))
