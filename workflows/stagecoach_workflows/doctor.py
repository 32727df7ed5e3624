"""Tries what a run will need: every verb of the store, the Hub, and on a cluster the rights and the GPUs."""

from __future__ import annotations

import secrets
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stagecoach.errors import StagecoachError
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store

_PARTS_BYTES = 20 * 1024 * 1024  # above the size at which an S3 store uploads in parts
_RIGHTS = (
    ("create", "workflows", "argoproj.io"),
    ("get", "workflows", "argoproj.io"),
    ("list", "workflows", "argoproj.io"),
    ("patch", "workflows", "argoproj.io"),
    ("get", "workflowtemplates", "argoproj.io"),
    ("list", "pods", ""),
    ("get", "pods/log", ""),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    ok: bool
    sentence: str
    needed: bool = True
    """Whether runs fail without it."""


def examine_store(url: str, settings: Settings) -> Iterator[Finding]:
    """Try every verb on keys of its own under ``doctor/`` and delete them again."""
    prefix = f"doctor/{secrets.token_hex(8)}/"
    try:
        store = open_store(url, settings)
    except StagecoachError as error:
        yield Finding(what="store", ok=False, sentence=str(error))
        return
    for what, attempt in _store_attempts(store, prefix):
        try:
            yield Finding(what=f"store: {what}", ok=True, sentence=attempt())
        except StagecoachError as error:
            yield Finding(what=f"store: {what}", ok=False, sentence=str(error))
            return
    store.delete([info.key for info in store.list(prefix)])


def _store_attempts(store: ObjectStore, prefix: str) -> list[tuple[str, Callable[[], str]]]:
    def put() -> str:
        store.put(f"{prefix}small", b"stagecoach")
        return f"an object in {store.url}"

    def get() -> str:
        _expect(store.get(f"{prefix}small") == b"stagecoach", "the bytes that were put come back")
        _expect(store.get_range(f"{prefix}small", 5, 5) == b"coach", "a range of them comes back")
        return "whole and by range"

    def conditional_put() -> str:
        first = store.put_if_absent(f"{prefix}once", b"1")
        second = store.put_if_absent(f"{prefix}once", b"2")
        _expect((first, second) == (True, False), "only the first of two conditional puts wins (If-None-Match)")
        return "the second of two was refused"

    def multipart() -> str:
        with tempfile.TemporaryDirectory(prefix="stagecoach-doctor-") as folder:
            file = Path(folder, "large")
            file.write_bytes(b"\0" * _PARTS_BYTES)
            store.put_file(f"{prefix}large", file)
        info = store.head(f"{prefix}large")
        _expect(info is not None and info.size_bytes == _PARTS_BYTES, "an upload in parts is complete")
        return f"{_PARTS_BYTES // 2**20} MiB"

    def listing() -> str:
        keys = [info.key for info in store.list(prefix)]
        _expect(keys == sorted(keys) and len(keys) == 3, "a listing shows all three objects in order")
        return "all objects, in order"

    def delete() -> str:
        store.delete([f"{prefix}small", f"{prefix}large", f"{prefix}once"])
        _expect(store.head(f"{prefix}small") is None, "a deleted object is gone")
        return "gone"

    return [
        ("put", put),
        ("get", get),
        ("conditional put", conditional_put),
        ("upload in parts", multipart),
        ("list", listing),
        ("delete", delete),
    ]


def examine_hub(settings: Settings) -> Finding:
    """Ask the Hub for its front door; only recipes with Hub sources need it."""
    address = settings.hub_address
    if settings.hub_offline:
        return Finding(what="Hub", ok=False, sentence="HF_HUB_OFFLINE is set", needed=False)
    try:
        with urllib.request.urlopen(f"{address}/api/models?limit=1", timeout=10) as response:
            return Finding(what="Hub", ok=True, sentence=f"{address} answers {response.status}", needed=False)
    except (urllib.error.URLError, OSError) as error:
        return Finding(what="Hub", ok=False, sentence=f"{address}: {error}", needed=False)


def examine_cluster(namespace: str) -> Iterator[Finding]:
    """Ask the cluster for the rights that submitting needs, and which nodes have GPUs."""
    from stagecoach_workflows.cluster import Cluster
    from stagecoach_workflows.policy import GPU_RESOURCE

    try:
        cluster = Cluster(namespace)
        for verb, resource, group in _RIGHTS:
            allowed = cluster.may(verb, resource, group)
            what = f"cluster: may {verb} {resource}"
            yield Finding(
                what=what, ok=allowed, sentence=f"namespace {cluster.namespace}: {'yes' if allowed else 'no'}"
            )
        if not cluster.may("list", "nodes"):
            yield Finding(what="cluster: GPUs", ok=False, sentence="this account may not list nodes", needed=False)
            return
        nodes = cluster.gpu_nodes(GPU_RESOURCE)
        listed = ", ".join(f"{name} has {number}" for name, number in nodes.items()) or "no node offers any"
        yield Finding(what="cluster: GPUs", ok=bool(nodes), sentence=listed, needed=False)
    except StagecoachError as error:
        yield Finding(what="cluster", ok=False, sentence=str(error))


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise StagecoachError(f"expected that {sentence}, but it is not so")
