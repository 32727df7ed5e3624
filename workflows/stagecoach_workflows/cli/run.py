"""``stagecoach run``, ``check`` and ``plan``: a recipe on this machine."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from stagecoach_workflows.cli import options

Runner = Literal["local", "docker", "slurm", "argo"]


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(run)
    commands.command()(check)
    commands.command()(plan)


def run(
    recipe: options.Recipe,
    store: options.Store = "",
    run_id: options.Run = "",
    settings: options.Settings = None,
    runner: Annotated[Runner, typer.Option(help="What runs the stages.")] = "local",
    answers: Annotated[
        int, typer.Option(min=0, metavar="NUM", help="Ask the exported model so many training prompts.")
    ] = 0,
    require_answers: Annotated[int, typer.Option(min=0, metavar="NUM", help="Fail with fewer good answers.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, metavar="NUM", help="Most stages at once.")] = 4,
    retries: Annotated[
        int | None, typer.Option(min=0, metavar="NUM", help="Most retries of a stage.", show_default=False)
    ] = None,
    work: options.Work = options.DEFAULT_WORK,
    deployment: options.DeploymentFile = None,
    images: options.ImagesFile = None,
    slurm: options.SlurmFile = None,
) -> int:
    """Run a recipe: every stage whose output is not there yet.

    The store is the folder .run/store if --store is left out; `--store s3` starts an S3 server for the run, and stops
    it.
    """
    _check_answers(answers, require_answers, runner)
    if store == "s3":
        from stagecoach_workflows.cli.with_s3 import run_with_s3

        return run_with_s3(work)
    if runner == "argo":
        from stagecoach_workflows.cli.cluster import submit

        return submit(
            recipe, settings=settings, store=store, run_id=run_id, deployment=deployment, images=images, wait=True
        )
    if runner == "slurm":
        from stagecoach_workflows.cli.slurm import SlurmSubmission

        submission = SlurmSubmission.of(
            recipe,
            settings or (),
            store_url=store,
            run_id=run_id,
            work=work,
            slurm_file=slurm,
            deployment=deployment,
            images=images,
        )
        if not submission.submit():
            submission.show_results()
            return 0
        return submission.follow()
    from stagecoach_workflows.cli.local_run import LocalRun

    local = LocalRun.of(recipe, settings or (), runner=runner, store_url=store, run_id=run_id, work=work)
    with local.answers_beside(answers) as process:
        code = local.run(local.options(max_parallel=jobs, max_retries=retries), deployment, images)
        return code or local.show_results(process, required=require_answers)


def _check_answers(answers: int, require_answers: int, runner: Runner) -> None:
    """Refuse questions that nobody would ask.

    Raises:
        ConfigError: More good answers are required than are asked for, or the model ends up elsewhere.
    """
    from stagecoach.errors import ConfigError

    if require_answers > answers:
        raise ConfigError(
            f"--require-answers: expected at most --answers = {answers}, got {require_answers}; raise --answers"
        )
    if answers and runner not in ("local", "docker"):
        raise ConfigError(
            f"--answers: expected the runner local or docker, got {runner}; ask the export with `stagecoach chat`"
        )


def check(
    recipe: options.Recipe,
    settings: options.Settings = None,
    store: options.Store = "",
    work: options.Work = options.DEFAULT_WORK,
    deployment: options.DeploymentFile = None,
) -> None:
    """Find every error of a recipe before any work.

    Its fields, its sources, the store, its workflow, and whether the model fits the layout.
    """
    from stagecoach_workflows.checks import check_recipe
    from stagecoach_workflows.deployment import load_deployment
    from stagecoach_workflows.recipes_shipped import load_recipe

    loaded = load_recipe(recipe, settings or ())
    for line in check_recipe(loaded, store or str(work / "store"), load_deployment(deployment)):
        typer.echo(line)


def plan(
    recipe: options.Recipe,
    settings: options.Settings = None,
    store: options.Store = "",
    work: options.Work = options.DEFAULT_WORK,
) -> None:
    """Show what a run would do, and why; nothing is written."""
    import time

    from stagecoach.settings import Settings
    from stagecoach.storage.open import open_store
    from stagecoach.terminal import console
    from stagecoach_workflows.cli.report import show_plan
    from stagecoach_workflows.plan import make_plan
    from stagecoach_workflows.recipes_shipped import load_recipe
    from stagecoach_workflows.run_ids import new_run_id

    loaded, environment = load_recipe(recipe, settings or ()), Settings.from_environ()
    opened = open_store(store or str(work / "store"), environment)
    show_plan(console(), make_plan(loaded, opened, environment, new_run_id(loaded.name, time.time())))
