"""Where an output came from: its inputs, their inputs, down to the files taken from the Hub, a folder or a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stagecoach.errors import ConfigError, MissingInputError
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.storage.base import ObjectStore


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageNode:
    """One output and what it was made from."""

    role: str
    """Name under which the output above read it; empty at the root."""
    prefix: str
    task: str
    key: str
    provenance: dict[str, str]
    source: dict[str, Any] | None
    """For what was downloaded: where from."""
    commit: str | None = None
    """For what was downloaded from the Hub: the commit that was read."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """For what was downloaded: path, size and digest of each file."""
    inputs: list[LineageNode] = field(default_factory=list)


def lineage(store: ObjectStore, prefix: str) -> LineageNode:
    """Return the tree of everything that the output under ``prefix`` was made from.

    Raises:
        MissingInputError: There is no finished output under ``prefix``.
    """
    folder = output_folder(store, prefix)
    manifest = read_manifest(store, folder)
    if manifest is None:
        raise MissingInputError(
            f"{store.url.rstrip('/')}/{folder}: no finished output here; `stagecoach show RUN` lists a run's outputs"
        )
    return _node(store, "", folder, manifest)


def output_folder(store: ObjectStore, output: str) -> str:
    """Return the folder in the store, with its final slash, of an output given as folder or as address.

    Raises:
        ConfigError: The address is none of this store.
    """
    root = store.url.rstrip("/") + "/"
    if "://" in output and not output.startswith(root):
        raise ConfigError(f"output: expected a folder or an address in {root}, got {output[:200]}; give its --store")
    return output.removeprefix(root).rstrip("/") + "/"


def walk(node: LineageNode, depth: int = 0) -> Iterator[tuple[int, LineageNode]]:
    """Yield every node with its depth, parents first."""
    yield depth, node
    for child in node.inputs:
        yield from walk(child, depth + 1)


def _node(store: ObjectStore, role: str, prefix: str, manifest: Manifest) -> LineageNode:
    found = ((name, folder, read_manifest(store, folder)) for name, folder in sorted(manifest.inputs.items()))
    return LineageNode(
        role=role,
        prefix=prefix,
        task=manifest.task,
        key=manifest.key,
        provenance=manifest.provenance,
        source=manifest.config.get("source"),
        commit=manifest.config.get("commit"),
        files=list(manifest.config.get("files", [])),
        inputs=[
            _node(store, name, folder, child) if child is not None else _deleted(name, folder)
            for name, folder, child in found
        ],
    )


def _deleted(role: str, prefix: str) -> LineageNode:
    """Stand for an input whose manifest is gone: its key still says what it was."""
    return LineageNode(
        role=role,
        prefix=prefix,
        task="(deleted)",
        key=prefix.rstrip("/").rsplit("-", 1)[-1],
        provenance={},
        source=None,
    )
