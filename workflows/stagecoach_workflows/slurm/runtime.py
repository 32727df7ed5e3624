"""The command line that starts a stage on a compute node: by Apptainer, Charliecloud, Podman, or Python alone.

None of them needs root. Every folder that a stage uses is mounted at its own path, so that its arguments and
variables are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecoach.errors import ConfigError
from stagecoach_workflows.docker import HUB_VARIABLES, PASSED_ON
from stagecoach_workflows.interpret import Step
from stagecoach_workflows.slurm.config import SlurmConfig

RUN_FOLDER = "$folder"
"""The run's folder, a variable of the batch script."""
SCRATCH = "$scratch"
"""The node's scratch folder, a variable of the batch script."""

_SCRIPT_VARIABLES = (
    "STAGECOACH_ARTIFACTS",
    "STAGECOACH_IMAGE_DIGEST",
    "STAGECOACH_SCRATCH",
    "ARGO_PROGRESS_FILE",
    "PYTHONUNBUFFERED",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NODEID",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The folders that stages see."""

    store: str
    """Address of the store."""
    sources: tuple[Path, ...] = ()
    """Folders of directory sources, read only."""

    @property
    def store_folder(self) -> str | None:
        """The store's folder; None where it is no directory."""
        return self.store.removeprefix("file://") if self.store.startswith("file://") else None

    def binds(self) -> list[str]:
        """Return every folder that a container mounts at its own path, to write in."""
        return [RUN_FOLDER, SCRATCH, *([self.store_folder] if self.store_folder else [])]


def launch_words(step: Step, config: SlurmConfig, place: Place, *, with_gpus: bool) -> list[str]:
    """Return the words before the stage's own arguments; ``$folder`` and ``$scratch`` are left for the shell.

    Args:
        step: What is run.
        config: The cluster's configuration, which names the runtime.
        place: Folders.
        with_gpus: The job has GPUs.
    """
    if config.runtime == "none":
        program, *rest = step.command
        if program != "python":
            raise ConfigError(
                f"template {step.name}: expected command python, got {program!r}; use a container runtime"
            )
        return [config.python or "python", *rest]
    if config.runtime == "apptainer":
        return [*_apptainer(config, place, with_gpus), image_name(step.image, config), *step.command]
    if config.runtime == "charliecloud":
        return [*_charliecloud(config, place), image_name(step.image, config), "--", *step.command]
    program, *rest = step.command
    words = _podman(config, place, step, with_gpus)
    return [*words, "--entrypoint", program, image_name(step.image, config), *rest]


def image_name(image: str, config: SlurmConfig) -> str:
    """Return what the runtime calls an image: a file or folder in ``images``, else its reference in the registry."""
    short = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    if config.runtime == "apptainer":
        return str(config.images / f"{short}.sif") if config.images is not None else f"docker://{image}"
    if config.runtime == "charliecloud" and config.images is not None:
        return str(config.images / short)
    return image


def _apptainer(config: SlurmConfig, place: Place, with_gpus: bool) -> list[str]:
    words = ["apptainer", "exec", "--no-home", "--contain", *(["--nv"] if with_gpus else [])]
    for folder in place.binds():
        words += ["--bind", f"{folder}:{folder}"]
    for source in place.sources:
        words += ["--bind", f"{source}:{source}:ro"]
    return [*words, "--env", "PYTHONNOUSERSITE=1"]


def _charliecloud(config: SlurmConfig, place: Place) -> list[str]:
    """Mount points have to exist, so the image is opened for writing; it is a folder of the user's own."""
    words = ["ch-run", "--write", "--no-passwd", "--private-tmp", "--set-env", "--set-env=HOME=/tmp"]
    folders = (*place.binds(), *(str(source) for source in place.sources))
    return [*words, *(f"--bind={folder}:{folder}" for folder in folders)]


def _podman(config: SlurmConfig, place: Place, step: Step, with_gpus: bool) -> list[str]:
    """Root in a container without root is the user outside; the image's own user could write to none of the folders."""
    words = ["podman", "run", "--rm", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"]
    words += ["--network=host", "--ipc=host", "--user=0", "--tmpfs=/tmp:rw,exec,mode=1777"]
    for folder in place.binds():
        words.append(f"--volume={folder}:{folder}")
    for source in place.sources:
        words.append(f"--volume={source}:{source}:ro")
    asks_the_hub = step.name.startswith(("download", "export", "notify"))
    for name in (*_SCRIPT_VARIABLES, *PASSED_ON, *(HUB_VARIABLES if asks_the_hub else ()), *config.environment):
        words.append(f"--env={name}")  # without a value: taken from podman's own environment
    return [*words, *(["--device=nvidia.com/gpu=all"] if with_gpus else [])]


def shell_words(words: Sequence[str], variables: Sequence[str]) -> list[str]:
    """Return words quoted for a shell, but for ``$name`` of these variables, which stands in double quotes."""
    return [_shell_word(word, variables) for word in words]


def _shell_word(word: str, variables: Sequence[str]) -> str:
    from shlex import quote

    for variable in variables:
        if variable in word:
            before, _, after = word.partition(variable)
            parts = [_shell_word(before, variables) if before else "", f'"{variable}"']
            return "".join([*parts, _shell_word(after, variables) if after else ""])
    return quote(word)
