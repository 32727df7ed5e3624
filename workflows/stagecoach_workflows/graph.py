"""The tasks of one recipe: the table of ``stagecoach.stages`` with one download task for each data source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagecoach.stages import TASKS, TaskKind


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskNode:
    """One task of a run and the tasks whose outputs it needs."""

    task: str
    """Name in plans and records: the kind's, with ``-<source name>`` where there is one for each data source."""
    kind: TaskKind
    """Row of the table."""
    data_source: str | None
    """Name of the data source that it brings."""
    reads: Mapping[str, str]
    """Input name -> task; a data source's input is called ``data-<source name>``."""
    key_inputs: Mapping[str, str]
    """Input name -> task whose key enters this task's key."""


def task_nodes(data_sources: Sequence[str]) -> dict[str, TaskNode]:
    """Return every task of a recipe with these data sources, by name, in an order in which they may run."""
    nodes: dict[str, TaskNode] = {}
    for kind in TASKS.values():
        reads = _expand(kind.reads, data_sources)
        key_inputs = reads if kind.key_inputs is None else _expand(kind.key_inputs, data_sources)
        for source in data_sources if kind.per_source else (None,):
            task = kind.name if source is None else f"{kind.name}-{source}"
            nodes[task] = TaskNode(task=task, kind=kind, data_source=source, reads=reads, key_inputs=key_inputs)
    return nodes


def _expand(inputs: Mapping[str, str], data_sources: Sequence[str]) -> dict[str, str]:
    expanded: dict[str, str] = {}
    for name, kind in inputs.items():
        if TASKS[kind].per_source:
            expanded.update({f"{name}-{source}": f"{kind}-{source}" for source in data_sources})
        else:
            expanded[name] = kind
    return expanded
