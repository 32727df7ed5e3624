"""``stagecoach doctor``: whether this machine or cluster has what a run needs."""

from __future__ import annotations

from typing import Annotated

import typer

from stagecoach_workflows.cli import options


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(doctor)


def doctor(
    store: options.Store = "",
    cluster: Annotated[bool, typer.Option("--cluster", help="Also ask the cluster of KUBECONFIG.")] = False,
    namespace: options.Namespace = "",
    work: options.Work = options.DEFAULT_WORK,
) -> int:
    """Try the store (put, get, list, parts, conditional put), the Hub and, if wanted, the cluster."""
    from itertools import chain

    from stagecoach.settings import Settings
    from stagecoach_workflows.doctor import examine_cluster, examine_hub, examine_store

    settings = Settings.from_environ()
    findings = chain(
        examine_store(store or str(work / "store"), settings),
        [examine_hub(settings)],
        examine_cluster(namespace) if cluster else (),
    )
    wrong = 0
    for finding in findings:
        mark = "ok" if finding.ok else "FAILED" if finding.needed else "no"
        typer.echo(f"{mark:<7} {finding.what}: {finding.sentence}")
        wrong += finding.needed and not finding.ok
    return 78 if wrong else 0
