"""The command line of an interactive shell in a stage's environment: by Docker here, or by ``srun`` on a SLURM node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stagecoach_workflows.slurm.checks import check_room
from stagecoach_workflows.slurm.client import Node
from stagecoach_workflows.slurm.config import JobOptions, SlurmConfig
from stagecoach_workflows.slurm.runtime import image_name
from stagecoach_workflows.slurm.script import Asked

_SHELL = "bash"
_TIME = "1:00:00"


def docker_shell(image: str, folder: Path, num_gpus: int) -> list[str]:
    """Return a shell in an image, as the user's own uid, with ``folder`` mounted at its own path.

    Args:
        image: The stage's image.
        folder: What is worked on; the shell starts in it.
        num_gpus: GPUs of this machine; the container sees all of them.
    """
    words = ["docker", "run", "--rm", "--interactive", "--tty", "--user", f"{os.getuid()}:{os.getgid()}"]
    words += ["--network", "host", "--ipc", "host", "--env", "HOME=/tmp", "--workdir", str(folder)]
    words += ["--volume", f"{folder}:{folder}", *(["--gpus", "all"] if num_gpus else [])]
    return [*words, "--entrypoint", _SHELL, image]


def slurm_shell(stage: str, image: str, folder: Path, config: SlurmConfig) -> list[str]:
    """Return a shell on a compute node, with the options and the container runtime that ``stage`` has there.

    Args:
        stage: Whose partition, account, cores, memory and GPUs are asked for.
        image: The stage's image, for a container runtime.
        folder: A folder that the node sees as well; the shell starts in it.
        config: The cluster.
    """
    options = config.options(stage)
    return [
        "srun",
        "--pty",
        f"--job-name=stagecoach-shell-{stage}",
        f"--chdir={folder}",
        *_asked(options),
        *_prepared(config),
        *_in_runtime(image, folder, config, options),
    ]


def check_shell(stage: str, config: SlurmConfig, nodes: Sequence[Node]) -> None:
    """Refuse what ``srun`` would refuse, or wait for without end.

    Raises:
        ConfigError: There is no such partition, or none of its nodes has the time, GPUs, cores or memory.
    """
    options = config.options(stage)
    wanted = Asked(
        nodes=1,
        cpus=options.cpus or 1,
        memory_mib=round((options.memory_gib or 0) * 1024),
        gpus=options.gpus or 0,
        gpu_type=options.gpu_type if options.gpus else None,
        time=options.time or _TIME,
        partition=options.partition,
    )
    check_room(stage, wanted, nodes, time_hint=f" for {stage}")


def _asked(options: JobOptions) -> list[str]:
    """Return the options of ``srun``; a shell gets no GPU unless the cluster's file says how many."""
    gpus = f"gpu:{options.gpu_type}:{options.gpus}" if options.gpu_type else f"gpu:{options.gpus}"
    values = {
        "nodes": "1",
        "ntasks": "1",
        "time": options.time or _TIME,
        "cpus-per-task": options.cpus,
        "mem": f"{round(options.memory_gib * 1024)}M" if options.memory_gib else None,
        "gres": gpus if options.gpus else None,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "reservation": options.reservation,
    }
    words = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [*words, *(["--exclusive"] if options.exclusive else []), *options.options]


def _prepared(config: SlurmConfig) -> list[str]:
    """Return the words that set the variables and load the modules of every job before what follows them."""
    variables = [f"{name}={value}" for name, value in config.environment.items()]
    words = ["env", *variables] if variables else []
    if not config.modules:
        return words
    load = " && ".join(f"module load {module}" for module in config.modules)
    missing = "echo 'a module cannot be loaded; correct modules in slurm.yaml' >&2; exit 78"
    return [*words, _SHELL, "-c", f'{{ {load}; }} || {{ {missing}; }}; exec "$@"', _SHELL]


def _in_runtime(image: str, folder: Path, config: SlurmConfig, options: JobOptions) -> list[str]:
    name = image_name(image, config)
    runtimes = {
        "none": [_SHELL],
        "apptainer": [
            *("apptainer", "exec", *(["--nv"] if options.gpus else []), "--bind", f"{folder}:{folder}"),
            *("--pwd", str(folder), name, _SHELL),
        ],
        "charliecloud": [
            *("ch-run", "--write", "--set-env", f"--bind={folder}:{folder}", f"--cd={folder}", name, "--", _SHELL)
        ],
        "podman": [
            *("podman", "run", "--rm", "--interactive", "--tty", "--user=0", "--network=host"),
            *(f"--volume={folder}:{folder}", f"--workdir={folder}"),
            *(["--device=nvidia.com/gpu=all"] if options.gpus else []),
            *(f"--env={name}" for name in config.environment),
            *(f"--entrypoint={_SHELL}", name),
        ],
    }
    return runtimes[config.runtime]
