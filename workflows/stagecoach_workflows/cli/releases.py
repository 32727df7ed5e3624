"""``stagecoach releases`` and ``rollback``: what serves under which name, and the way back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from stagecoach_workflows.cli import options
from stagecoach_workflows.cli.bucket import AsJson, echo_json, echo_table, open_bucket

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a release.", show_default=False)]


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(releases)
    commands.command()(rollback)


def releases(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Show its history.", show_default=False)] = "",
    store: options.Store = "",
    json_output: AsJson = False,
) -> None:
    """Show what is released under each name, or the whole history of one."""
    from stagecoach.errors import MissingInputError
    from stagecoach.releases import read_releases, release_names
    from stagecoach_workflows.bucket import releases as bucket
    from stagecoach_workflows.bucket.runs import utc

    opened = open_bucket(store)
    if not name:
        rows = bucket.list_releases(opened)
        if json_output:
            echo_json([asdict(row) for row in rows])
            return
        echo_table(
            ("release", "number", "last", "at", "serves"),
            [
                (row.name, row.number, row.outcome, row.unix_seconds and utc(row.unix_seconds), row.export)
                for row in rows
            ],
        )
        for row in rows:
            if row.problem:
                typer.echo(f"release {row.name}: {row.problem}")
        return
    history = read_releases(opened, name)
    if not history:
        known = ", ".join(release_names(opened)) or "none"
        raise MissingInputError(f"release {name}: nothing was ever offered under this name (releases there: {known})")
    if json_output:
        echo_json([{"number": number, **release.model_dump(mode="json")} for number, release in history.items()])
        return
    echo_table(
        ("number", "outcome", "at", "candidate", "serves", "why"),
        [
            (
                number,
                release.outcome,
                utc(release.unix_seconds),
                release.candidate,
                release.export,
                "; ".join(release.reasons) or None,
            )
            for number, release in history.items()
        ],
    )


def rollback(
    name: Name,
    to: Annotated[
        int | None,
        typer.Option(metavar="NUM", help="Number of the record to go back to; the one before without it."),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")] = "",
    store: options.Store = "",
    json_output: AsJson = False,
) -> None:
    """Let an earlier export of a release serve again; what was rolled back is not promoted again by itself."""
    from stagecoach_workflows.bucket.releases import roll_back

    number, release = roll_back(open_bucket(store), name, to, reason)
    if json_output:
        echo_json({"number": number, **release.model_dump(mode="json")})
        return
    typer.echo(f"release {name} number {number}: {release.candidate} is taken back, {release.export} serves")
