"""What a SLURM cluster decides and a recipe does not: partitions, accounts, times, and what runs the containers.

Nothing here enters a content key. ``--slurm FILE`` names the YAML file; without it ``slurm.yaml`` of the current folder
counts where there is one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from stagecoach.errors import ConfigError
from stagecoach.stages import TASKS

DEFAULT_FILE = Path("slurm.yaml")
Runtime = Literal["none", "apptainer", "charliecloud", "podman"]

_WORD = re.compile(r"[A-Za-z0-9_.,:&|!*()\[\]/@+-]+")
_OPTION = re.compile(r"--[a-z][a-z-]*(=[^\n\"'`$\\]*)?")
_MODULE = re.compile(r"[A-Za-z0-9_.+/-]+")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TASKS = (*TASKS, "probe", "notify")


def _matches(pattern: re.Pattern[str], what: str) -> AfterValidator:
    """Return a check that a text may stand in a batch script as it is."""

    def check(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError(f"expected {what}, got {text!r}")
        return text

    return AfterValidator(check)


Word = Annotated[str, _matches(_WORD, "a word without spaces and quotes")]
Option = Annotated[str, _matches(_OPTION, "an option of sbatch such as --gpu-bind=closest, without quotes")]
Module = Annotated[str, _matches(_MODULE, "the name of a module such as cuda/12.8")]


def _quoted(value: object) -> object:
    """Refuse a bare ``24:00:00``, which YAML reads as a number in base 60: 86400."""
    if isinstance(value, int):
        raise ValueError(f"expected a time in quotes, such as '24:00:00' or '90' (minutes), got {value}")
    return value


Time = Annotated[str, BeforeValidator(_quoted), _matches(_TIME, "a time such as 90, 24:00:00 or 2-00:00:00")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobOptions(_Part):
    """What ``sbatch`` is told for one kind of task; what is left out stays as the recipe and the cluster have it."""

    partition: Word | None = None
    """Partition; None takes the cluster's default."""
    account: Word | None = None
    """Account that pays."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that the node must have."""
    reservation: Word | None = None
    """Reservation to run in."""
    time: Time | None = None
    """Time limit of one attempt: minutes, HH:MM:SS or D-HH:MM:SS; train saves before it is over and goes on in the next."""
    cpus: PositiveInt | None = None
    """Cores on each node."""
    memory_gib: PositiveFloat | None = None
    """Memory on each node."""
    gpu_type: Word | None = None
    """Type of GPU as the cluster names it in ``--gres=gpu:TYPE:NUM``."""
    gpus: PositiveInt | None = None
    """GPUs on each node, instead of what the recipe asks for; counts only where it asks for some."""
    exclusive: bool = False
    """Share the node with no other job."""
    options: tuple[Option, ...] = ()
    """Further options of ``sbatch``."""


class SlurmConfig(_Part):
    """Everything about a SLURM cluster that its batch scripts hold."""

    runtime: Runtime = "none"
    """What starts a stage: ``none`` is ``python`` below, the others run the stage's image."""
    python: str | None = None
    """Python with Stagecoach installed, as the compute nodes see it (``/shared/venv/bin/python``), for runtime none;
    None is the one that submits."""
    images: Path | None = None
    """Folder with ``stagecoach-train.sif`` .. (Apptainer) or unpacked ``stagecoach-train/`` .. (Charliecloud); None takes
    Apptainer's and Podman's images from their registry."""
    scratch: Path | None = None
    """Folder on each node's own disk; None takes the job's TMPDIR, else /tmp."""
    modules: tuple[Module, ...] = ()
    """Environment modules that every job loads first."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of every job, such as ``NCCL_SOCKET_IFNAME``."""
    downloads_here: bool = False
    """Run the downloads where the run is submitted: compute nodes often have no way to the internet."""
    notify: Path | None = None
    """Folder with the addresses that hear how a run ended, a small file each: ``webhook-url``, .."""
    defaults: JobOptions = JobOptions()
    """Options of every job."""
    tasks: dict[str, JobOptions] = Field(default_factory=dict)
    """Options by kind of task, over the defaults: ``train``, ``pack``, ``download-model``, .."""

    def options(self, kind: str) -> JobOptions:
        """Return the options of one kind of task."""
        own = self.tasks.get(kind)
        if own is None:
            return self.defaults
        return self.defaults.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def load_slurm_config(file: Path | None) -> SlurmConfig:
    """Return what a YAML file says; without one ``slurm.yaml`` of the current folder, else the defaults.

    Raises:
        ConfigError: One line for each problem: file, field, what was expected.
    """
    if file is None and not DEFAULT_FILE.is_file():
        return SlurmConfig()
    path = file or DEFAULT_FILE
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file, got: {str(error).splitlines()[0]}") from error
    try:
        config = SlurmConfig.model_validate({} if values is None else values)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error
    _check_names(config, path)
    return config


def _check_names(config: SlurmConfig, path: Path) -> None:
    unknown = sorted(set(config.tasks) - set(_TASKS))
    if unknown:
        raise ConfigError(f"{path}: tasks.{unknown[0]}: expected one of {', '.join(_TASKS)}")
    for name in config.environment:
        if _VARIABLE.fullmatch(name) is None:
            raise ConfigError(f"{path}: environment: expected a variable's name, got {name!r}")
    if config.runtime == "charliecloud" and config.images is None:
        raise ConfigError(f"{path}: images: expected a folder of unpacked images for runtime charliecloud, got none")


def time_seconds(text: str) -> float:
    """Return the seconds of SLURM's ``MINUTES``, ``MM:SS``, ``HH:MM:SS``, ``D-HH[:MM[:SS]]``; ``UNLIMITED`` is infinite.

    Raises:
        ConfigError: It is none of these.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = _TIME.fullmatch(text)
    if match is None:
        raise ConfigError(f"time: expected minutes, HH:MM:SS or D-HH:MM:SS, got {text!r}")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
