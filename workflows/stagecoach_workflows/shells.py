"""The command line of an interactive shell in a stage's environment: by Docker here, or by ``srun`` on a SLURM node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stagecoach.errors import ConfigError
from stagecoach_workflows.slurm.checks import gpus_of, nodes_to_run_on
from stagecoach_workflows.slurm.client import Node
from stagecoach_workflows.slurm.config import JobOptions, SlurmConfig
from stagecoach_workflows.slurm.runtime import image_name

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
        *_in_runtime(image, folder, config, options),
    ]


def check_shell(stage: str, config: SlurmConfig, nodes: Sequence[Node]) -> None:
    """Refuse what ``srun`` would refuse, or wait for without end.

    Raises:
        ConfigError: There is no such partition, or none of its nodes has the GPUs.
    """
    options = config.options(stage)
    there = nodes_to_run_on(stage, options.partition, nodes)
    most = max(gpus_of(node, options.gpu_type) for node in there)
    if (options.gpus or 0) > most:
        raise ConfigError(f"{stage}: {options.gpus} GPUs are asked for, but a node of its partition has at most {most}")


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
    return [*(f"--{name}={value}" for name, value in values.items() if value is not None), *options.options]


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
            *(f"--entrypoint={_SHELL}", name),
        ],
    }
    return runtimes[config.runtime]
