"""Finds what a cluster cannot give a run before anything is submitted: partitions, times, GPUs, memory, images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecoach.errors import ConfigError, MissingInputError
from stagecoach_workflows.slurm.client import Node
from stagecoach_workflows.slurm.config import SlurmConfig, time_seconds
from stagecoach_workflows.slurm.runtime import image_name
from stagecoach_workflows.slurm.script import Asked, BatchTask, asked


def check_tasks(tasks: Sequence[BatchTask], config: SlurmConfig, nodes: Sequence[Node]) -> None:
    """Compare every task with the cluster.

    Raises:
        ConfigError: A partition, time or node that the cluster does not have.
        MissingInputError: An image is not there.
    """
    for task in tasks:
        _check_image(task, config)
    for task in tasks:
        time_hint = ": train saves in time and goes on in its next job" if task.kind == "train" else ""
        check_room(
            task.name,
            asked(task, config),
            nodes,
            time_hint=f" for {task.kind}{time_hint}",
            gpus_hint=", or train.gpus of the recipe",
        )


def _check_image(task: BatchTask, config: SlurmConfig) -> None:
    if config.images is None or config.runtime not in ("apptainer", "charliecloud"):
        return
    image = Path(image_name(task.step.image, config))
    if not image.exists():
        how = "apptainer build" if config.runtime == "apptainer" else "ch-convert"
        raise MissingInputError(
            f"{task.name}: expected its image {image}, found none; make it with `{how}`"
            " (docs/howto/slurm.md), or correct `images` in slurm.yaml"
        )


def nodes_to_run_on(name: str, partition: str | None, nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes of a job's partitions.

    Args:
        name: What is going to run, for the error.
        partition: One name, or several with commas; None is the cluster's default.
        nodes: All nodes.

    Raises:
        ConfigError: There is no such partition, or no default.
    """
    partitions = partition.split(",") if partition else []
    known = {node.partition for node in nodes}
    for one in partitions:
        if one not in known:
            raise ConfigError(
                f"{name}: expected a partition of this cluster ({', '.join(sorted(known))}), got {one!r};"
                " correct `partition` in slurm.yaml"
            )
    there = [node for node in nodes if (node.partition in partitions if partitions else node.is_default)]
    if not there:
        raise ConfigError(
            f"{name}: this cluster has no default partition; name one of {', '.join(sorted(known))}"
            " as `defaults.partition` in slurm.yaml"
        )
    return there


def gpus_of(node: Node, kind: str | None) -> int:
    """Return how many GPUs of a type a node has; of any type for None."""
    return node.gpus.get(kind, 0) if kind is not None else sum(node.gpus.values())


def check_room(name: str, wanted: Asked, nodes: Sequence[Node], *, time_hint: str = "", gpus_hint: str = "") -> None:
    """Compare what a job asks for with the nodes of its partitions.

    Args:
        name: What is going to run, for the error.
        wanted: What it asks for.
        nodes: All nodes.
        time_hint: What else to know about a limit of time.
        gpus_hint: What else could be changed where GPUs are missing.

    Raises:
        ConfigError: It would be refused, or would wait without end.
    """
    there = nodes_to_run_on(name, wanted.partition, nodes)
    longest = max(there, key=lambda node: node.max_seconds)
    if time_seconds(wanted.time) > longest.max_seconds:
        raise ConfigError(
            f"{name}: a time limit of {wanted.time} is more than the {_hours(longest.max_seconds)} of partition"
            f" {longest.partition}; set `time` in slurm.yaml{time_hint}"
        )
    _check_sizes(name, wanted, there, gpus_hint)
    in_time = [node for node in there if time_seconds(wanted.time) <= node.max_seconds]
    fitting = {
        part: _num_fitting(wanted, [node for node in in_time if node.partition == part]) for part in _names(there)
    }
    most = max(fitting, key=lambda part: fitting[part])
    if fitting[most] < wanted.nodes:
        raise ConfigError(
            f"{name}: {wanted.nodes} nodes with {_gpus(wanted)}, {wanted.cpus} cores and {_gib(wanted.memory_mib)} GiB"
            f" each for {wanted.time} are asked for, but partition {most} has {fitting[most]};"
            " change slurm.yaml or train.nodes of the recipe"
        )


def _check_sizes(name: str, wanted: Asked, there: Sequence[Node], gpus_hint: str) -> None:
    def gpus(node: Node) -> int:
        return gpus_of(node, wanted.gpu_type)

    most = max(there, key=gpus)
    if wanted.gpus > gpus(most):
        raise ConfigError(
            f"{name}: {_gpus(wanted)} are asked for, but a node of partition {most.partition} has at most {gpus(most)};"
            f" correct partition, gpu_type or gpus in slurm.yaml{gpus_hint}"
        )
    most = max(there, key=lambda node: node.cpus)
    if wanted.cpus > most.cpus:
        raise ConfigError(
            f"{name}: {wanted.cpus} cores are asked for, but a node of partition {most.partition} has at most"
            f" {most.cpus}; set cpus in slurm.yaml"
        )
    most = max(there, key=lambda node: node.memory_mib)
    if wanted.memory_mib > most.memory_mib:
        raise ConfigError(
            f"{name}: {_gib(wanted.memory_mib)} GiB of memory are asked for, but a node of partition {most.partition}"
            f" has at most {_gib(most.memory_mib)}; set memory_gib in slurm.yaml"
        )


def _num_fitting(wanted: Asked, nodes: Sequence[Node]) -> int:
    return sum(
        gpus_of(node, wanted.gpu_type) >= wanted.gpus
        and node.cpus >= wanted.cpus
        and node.memory_mib >= wanted.memory_mib
        for node in nodes
    )


def _names(nodes: Sequence[Node]) -> list[str]:
    return sorted({node.partition for node in nodes})


def _gpus(wanted: Asked) -> str:
    return f"{wanted.gpus} GPUs{f' of type {wanted.gpu_type}' if wanted.gpu_type else ''}"


def _gib(mib: int) -> str:
    """One decimal: 8,000 MiB are not the 8 GiB that do not fit in them."""
    return f"{round(mib / 1024, 1):g}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} hours"
