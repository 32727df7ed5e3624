"""``stagecoach shell``: an interactive shell where a stage would run, for debugging and data work."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import typer

from stagecoach_workflows.cli import options


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    commands.command()(shell)


def shell(
    runner: Annotated[Literal["docker", "slurm"], typer.Option(help="What runs the shell.")] = "docker",
    stage: Annotated[str, typer.Option(help="Whose image and resources it gets.")] = "train",
    folder: Annotated[Path, typer.Option(metavar="DIR", help="What it works in, mounted at its own path.")] = Path("."),
    deployment: options.DeploymentFile = None,
    images: options.ImagesFile = None,
    slurm: options.SlurmFile = None,
    show_command: Annotated[bool, typer.Option("--show-command", help="Print the command and end.")] = False,
) -> int:
    """Open a shell in a stage's image as yourself, here by Docker or on a node of a SLURM cluster."""
    from stagecoach.errors import ConfigError
    from stagecoach_workflows.deployment import load_deployment
    from stagecoach_workflows.serving.servers import num_gpus
    from stagecoach_workflows.shells import check_shell, docker_shell, slurm_shell

    if not folder.is_dir():
        raise ConfigError(f"--folder: expected a directory, got {str(folder)!r}")
    image = load_deployment(deployment, images).image(stage)
    if runner == "docker":
        words = docker_shell(image, folder.resolve(), num_gpus())
        if not show_command:
            _check_image(image)
    else:
        from stagecoach_workflows.slurm.client import Slurm
        from stagecoach_workflows.slurm.config import load_slurm_config

        config = load_slurm_config(slurm)
        words = slurm_shell(stage, image, folder.resolve(), config)
        if not show_command:
            check_shell(stage, config, Slurm().nodes())
    if show_command:
        typer.echo(shlex.join(words))
        return 0
    return subprocess.run(words, check=False).returncode


def _check_image(image: str) -> None:
    """Refuse an image that is not on this machine: a shell is for what was built or pulled."""
    from stagecoach.errors import ConfigError, UnavailableError

    try:
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            "shell: expected a `docker` program on PATH; install Docker, or take --runner slurm"
        ) from error
    if found.returncode == 0:
        return
    said = found.stderr.strip().splitlines()[-1:] or ["docker says nothing"]
    if "daemon" in said[0].lower() and "running" in said[0].lower():
        raise UnavailableError(f"shell: {said[0]}")
    raise ConfigError(f"shell: image {image} is not on this machine; `make images` builds it, `docker pull` fetches it")
