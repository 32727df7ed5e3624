"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a field of the recipe, such as train.seed=7.", show_default=False
    ),
]
Store = Annotated[
    str,
    typer.Option("--store", metavar="URL", help="Where everything is kept: a directory or s3://bucket/prefix."),
]
Run = Annotated[
    str, typer.Option("--run", metavar="ID", help="Id of the run; a new one if left out.", show_default=False)
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of the run or name of its workflow.", show_default=False)
]
Work = Annotated[Path, typer.Option("--work", metavar="DIR", help="Folder for logs and, by default, the store.")]
DeploymentFile = Annotated[
    Path | None,
    typer.Option("--deployment", metavar="FILE", help="YAML with what the cluster decides.", show_default=False),
]
SlurmFile = Annotated[
    Path | None,
    typer.Option(
        "--slurm",
        metavar="FILE",
        help="YAML with what a SLURM cluster decides; slurm.yaml here, if there is one.",
        show_default=False,
    ),
]
ImagesFile = Annotated[
    Path | None,
    typer.Option("--images", metavar="FILE", help="images.lock.json: image to digest.", show_default=False),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Namespace; empty takes the context's own.", show_default=False
    ),
]

DEFAULT_WORK = Path(".run")
