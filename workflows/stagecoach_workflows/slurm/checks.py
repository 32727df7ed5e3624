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
        _check_nodes(task, asked(task, config), nodes)


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


def _check_nodes(task: BatchTask, wanted: Asked, nodes: Sequence[Node]) -> None:
    there = nodes_to_run_on(task.name, wanted.partition, nodes)
    longest_seconds = max(node.max_seconds for node in there)
    if time_seconds(wanted.time) > longest_seconds:
        raise ConfigError(
            f"{task.name}: a time limit of {wanted.time} is more than the {_hours(longest_seconds)} of partition"
            f" {there[0].partition}; set `time` for {task.kind} in slurm.yaml: train saves in time and goes on in its next job"
        )
    _check_sizes(task, wanted, there)


def _check_sizes(task: BatchTask, wanted: Asked, there: Sequence[Node]) -> None:
    kind = f" of type {wanted.gpu_type}" if wanted.gpu_type else ""
    gpus = max(gpus_of(node, wanted.gpu_type) for node in there)
    largest = max(there, key=lambda node: (gpus_of(node, wanted.gpu_type), node.memory_mib))
    where = f"a node of partition {largest.partition} has at most"
    if wanted.gpus > gpus:
        raise ConfigError(
            f"{task.name}: {wanted.gpus} GPUs{kind} are asked for, but {where} {gpus};"
            " correct partition, gpu_type or gpus in slurm.yaml, or train.gpus of the recipe"
        )
    cpus, memory_mib = max(node.cpus for node in there), max(node.memory_mib for node in there)
    if wanted.cpus > cpus:
        raise ConfigError(f"{task.name}: {wanted.cpus} cores are asked for, but {where} {cpus}; set cpus in slurm.yaml")
    if wanted.memory_mib > memory_mib:
        raise ConfigError(
            f"{task.name}: {_gib(wanted.memory_mib)} GiB of memory are asked for, but {where}"
            f" {_gib(memory_mib)}; set memory_gib in slurm.yaml"
        )
    fitting = {
        node.name
        for node in there
        if gpus_of(node, wanted.gpu_type) >= wanted.gpus
        and node.cpus >= wanted.cpus
        and node.memory_mib >= wanted.memory_mib
    }
    if len(fitting) < wanted.nodes:
        raise ConfigError(
            f"{task.name}: {wanted.nodes} nodes with {wanted.gpus} GPUs{kind}, {wanted.cpus} cores and"
            f" {_gib(wanted.memory_mib)} GiB each are asked for, but partition {largest.partition} has"
            f" {len(fitting)}; change slurm.yaml or train.nodes of the recipe"
        )


def _gib(mib: int) -> str:
    """One decimal: 8,000 MiB are not the 8 GiB that do not fit in them."""
    return f"{round(mib / 1024, 1):g}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} hours"
