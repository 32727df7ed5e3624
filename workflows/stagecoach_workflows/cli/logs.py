"""``stagecoach logs``: what the tasks of a run wrote, from the bucket, from a SLURM cluster or from Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stagecoach_workflows.cli import options
from stagecoach_workflows.cli.bucket import AsJson, echo_json, open_bucket

if TYPE_CHECKING:
    from stagecoach.storage.base import ObjectStore
    from stagecoach_workflows.bucket.logs import AttemptLog


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(logs)


def logs(
    run: options.RunArgument,
    task: Annotated[str, typer.Option(metavar="NAME", help="Only this task.", show_default=False)] = "",
    attempt: Annotated[
        int | None,
        typer.Option(metavar="NUM", help="Bucket: only this attempt of each task, -1 the last.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    tail: Annotated[
        int | None,
        typer.Option(min=0, metavar="NUM", help="Only so many last lines of each attempt.", show_default=False),
    ] = None,
    store: options.Store = "",
    namespace: options.Namespace = "",
    work: options.Work = options.DEFAULT_WORK,
    json_output: AsJson = False,
) -> None:
    """Show what the tasks of a run wrote.

    With --store from the bucket alone: every attempt, those too whose pod was killed and is gone. Without it from SLURM
    for a run of this folder, from this folder's own store for a run that it holds, else from the pods of the cluster.
    """
    from stagecoach.errors import ConfigError
    from stagecoach_workflows.cli import slurm

    batch = None if store else slurm.submitted_run(work, run)
    bucket = None if batch is not None else _bucket(store, run)
    if bucket is None and (attempt is not None or json_output):
        raise ConfigError(f"run {run}: --attempt and --json expect the bucket's logs; add --store URL")
    if batch is not None:
        slurm.logs(batch, task, follow=follow, tail_lines=tail)
    elif bucket is None:
        _show_pods(run, task, namespace, follow=follow, tail_lines=tail)
    elif follow:
        _follow_bucket(bucket, run, task, attempt)
    else:
        _show_bucket(bucket, run, task, attempt, tail_lines=tail, as_json=json_output)


def _bucket(store: str, run: str) -> ObjectStore | None:
    """Return the store that was named, or the folder's own if that has the run."""
    from stagecoach.paths import is_run_id, plan_key

    if store:
        return open_bucket(store)
    if not (options.DEFAULT_WORK / "store").is_dir() or not is_run_id(run):
        return None
    own = open_bucket("")
    return own if own.head(plan_key(run)) is not None else None


def _show_bucket(
    bucket: ObjectStore, run: str, task: str, attempt: int | None, *, tail_lines: int | None, as_json: bool
) -> None:
    from stagecoach_workflows.bucket.logs import attempt_logs, lines_of, missing

    found = attempt_logs(bucket, run, task, attempt)
    if not found:
        raise missing(run, task, attempt)
    shown = []
    for log in found:
        lines = list(lines_of(bucket, log))
        lines = lines if tail_lines is None else lines[max(0, len(lines) - tail_lines) :]
        if as_json:
            shown.append({"task": log.task, "attempt": log.attempt, "record": log.record, "lines": lines})
        else:
            _echo(log, lines, marked=len(found) > 1)
    if as_json:
        echo_json(shown)


def _follow_bucket(bucket: ObjectStore, run: str, task: str, attempt: int | None) -> None:
    from stagecoach_workflows.bucket.logs import follow

    for log, lines in follow(bucket, run, task, attempt):
        _echo(log, lines, marked=True)


def _echo(log: AttemptLog, lines: list[str], *, marked: bool) -> None:
    mark = f"{log.task} {log.attempt}: " if marked else ""
    for line in lines:
        typer.echo(f"{mark}{line}")


def _show_pods(run: str, task: str, namespace: str, *, follow: bool, tail_lines: int | None) -> None:
    from stagecoach.errors import MissingInputError
    from stagecoach_workflows.cluster import Cluster

    cluster = Cluster(namespace)
    name = cluster.find(run)
    pods = cluster.pods(name)
    found = {
        node.task: pods[node.node_id]
        for node in cluster.state(name).nodes
        if node.node_id in pods and task in ("", node.task)
    }
    if not found:
        what = f"task {task}" if task else "any task"
        raise MissingInputError(
            f"run {run}: expected a pod of {what}, found none; the pods of finished tasks are deleted, their logs are"
            " in the bucket: add --store URL"
        )
    for one, pod in found.items():
        for line in cluster.logs(pod, follow=follow, tail_lines=tail_lines):
            typer.echo(f"{one}: {line}" if len(found) > 1 else line)
