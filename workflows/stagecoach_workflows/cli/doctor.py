"""``stagecoach doctor``: whether this machine or cluster has what a run needs."""

from __future__ import annotations

from typing import Annotated

import typer

from stagecoach_workflows.cli import options
from stagecoach_workflows.cli.bucket import AsJson, echo_json


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(doctor)


def doctor(
    store: options.Store = "",
    cluster: Annotated[bool, typer.Option("--cluster", help="Also ask the cluster of KUBECONFIG.")] = False,
    namespace: options.Namespace = "",
    work: options.Work = options.DEFAULT_WORK,
    json_output: AsJson = False,
) -> int:
    """Try the store (put, get, list, parts, conditional put), the Hub and, if wanted, the cluster."""
    from dataclasses import asdict
    from itertools import chain

    from stagecoach.settings import Settings
    from stagecoach_workflows.doctor import examine_cluster, examine_hub, examine_store

    settings = Settings.from_environ()
    findings = chain(
        examine_store(store or str(work / "store"), settings),
        [examine_hub(settings)],
        examine_cluster(namespace) if cluster else (),
    )
    found = []
    for finding in findings:
        found.append(finding)
        if not json_output:
            mark = "ok" if finding.ok else "FAILED" if finding.needed else "no"
            typer.echo(f"{mark:<7} {finding.what}: {finding.sentence}")
    if json_output:
        echo_json([asdict(finding) for finding in found])
    return 78 if any(finding.needed and not finding.ok for finding in found) else 0
