"""``stagecoach submit``, ``status`` and ``cancel``: a recipe on a cluster, Kubernetes or SLURM.

A run that was submitted to SLURM is known by its folder under ``--work``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from stagecoach_workflows.cli import options


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (submit, status, cancel):
        commands.command()(command)


def submit(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.", show_default=False)
    ] = "",
    template: Annotated[
        str, typer.Option("--from", metavar="TEMPLATE", help="Use a template that is there.", show_default=False)
    ] = "",
    settings: options.Settings = None,
    store: options.Store = "",
    run_id: options.Run = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show how it goes; exit with the run's exit code.")] = False,
    namespace: options.Namespace = "",
    deployment: options.DeploymentFile = None,
    images: options.ImagesFile = None,
    runner: Annotated[Literal["argo", "slurm"], typer.Option(help="Which kind of cluster.")] = "argo",
    slurm: options.SlurmFile = None,
    work: options.Work = options.DEFAULT_WORK,
) -> int:
    """Run a recipe on the cluster of KUBECONFIG, or on the SLURM cluster of this login node.

    With RECIPE its WorkflowTemplate is made first, unless it is there; with --from only the Workflow is, and --set
    takes only fields that leave resources and tasks as they are.
    """
    if runner == "slurm":
        from stagecoach_workflows.cli.slurm import SlurmSubmission

        batch = SlurmSubmission.of(
            recipe,
            settings or (),
            store_url=store,
            run_id=run_id,
            work=work,
            slurm_file=slurm,
            deployment=deployment,
            images=images,
        )
        return batch.follow() if batch.submit() and wait else 0
    from stagecoach_workflows.cli.following import follow
    from stagecoach_workflows.cli.submitting import Submission
    from stagecoach_workflows.cluster import Cluster

    submission = Submission.of(recipe, template, settings or (), deployment, images)
    cluster = Cluster(namespace)
    name, run = submission.submit(cluster, store_url=store, run_id=run_id)
    typer.echo(f"run {run}: workflow {name} in namespace {cluster.namespace}")
    return follow(cluster, name) if wait else 0


def status(
    run: options.RunArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Show how it goes; exit with the run's exit code.")] = False,
    namespace: options.Namespace = "",
    work: options.Work = options.DEFAULT_WORK,
) -> int:
    """Show how a run on the cluster is doing."""
    from stagecoach_workflows.cli import slurm

    batch = slurm.submitted_run(work, run)
    if batch is not None:
        return slurm.status(batch, wait=wait)
    from stagecoach_workflows.cli.following import follow, show_state
    from stagecoach_workflows.cluster import Cluster

    cluster = Cluster(namespace)
    name = cluster.find(run)
    if wait:
        return follow(cluster, name)
    show_state(cluster.state(name))
    return 0


def cancel(
    run: options.RunArgument,
    now: Annotated[bool, typer.Option("--now", help="Without the exit hook, and without time to save.")] = False,
    namespace: options.Namespace = "",
    work: options.Work = options.DEFAULT_WORK,
) -> None:
    """End a run on the cluster; train saves what it has, and the same submit goes on from there."""
    from stagecoach_workflows.cli import slurm

    batch = slurm.submitted_run(work, run)
    if batch is not None:
        slurm.cancel(batch, now=now)
        return
    from stagecoach_workflows.cluster import Cluster

    cluster = Cluster(namespace)
    name = cluster.find(run)
    cluster.stop(name, at_once=now)
    typer.echo(f"workflow {name} is asked to end")
