"""Finds what nothing needs any more and deletes it, manifests first, so that nothing half-deleted is ever trusted.

Kept: every output that the plan of a kept run names; what the records of a release point to (all, or the newest few
exports that served) and everything that was made from; every output in the plan of a run that has not succeeded and has
given a sign of life (plan, record, heartbeat of its training) within seven days; and, inside a kept output, the objects
that its manifest lists. Objects of tries that no manifest lists go once they are older than that, as an equal run may
still be writing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stagecoach.errors import CorruptObjectError, MissingInputError
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.paths import manifest_key
from stagecoach.plan_file import Plan, read_plan
from stagecoach.releases import read_releases, release_names
from stagecoach.storage.base import ObjectInfo, ObjectStore, UnfinishedUpload
from stagecoach_workflows.bucket.runs import newest_run_ids, state_of
from stagecoach_workflows.bucket.verify import output_prefixes

GRACE_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """One output, or the left-overs inside one, that nothing needs."""

    prefix: str
    reason: str
    keys: tuple[str, ...]
    """Objects to delete, the manifest first where the whole output goes."""
    size_bytes: int


@dataclass(slots=True)
class GcPlan:
    """What ``gc`` would delete and what it spares."""

    garbage: list[Garbage] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Folder -> why it is spared."""
    runs: frozenset[str] = frozenset()
    """The runs that were looked at; what a later one names is spared when it comes to deleting."""
    uploads: list[UnfinishedUpload] = field(default_factory=list)
    """What interrupted puts left behind, older than the grace period."""

    @property
    def size_bytes(self) -> int:
        """Bytes that deleting would free."""
        return sum(item.size_bytes for item in self.garbage)


def plan_gc(
    store: ObjectStore,
    keep_runs: int,
    now_unix_seconds: float | None = None,
    *,
    keep_releases: int | None = None,
) -> GcPlan:
    """Return what nothing needs, without deleting anything.

    Args:
        store: The bucket.
        keep_runs: How many of the newest runs keep all their outputs.
        now_unix_seconds: The time to count ages from; None is now.
        keep_releases: How many of the newest exports that served under each name are kept, at least 1, so that the
            one that serves always is; None keeps all. There is no way back to one that is gone.

    Raises:
        StagecoachError: A plan or manifest cannot be read; then nothing is known to be garbage.
    """
    now = time.time() if now_unix_seconds is None else now_unix_seconds
    runs = newest_run_ids(store)
    plan = GcPlan(kept=_needed(store, runs, keep_runs, now, keep_releases), runs=frozenset(runs))
    for prefix in output_prefixes(store):
        item = _leftovers(store, prefix, now) if prefix in plan.kept else _whole(store, prefix, now)
        if item is not None:
            plan.garbage.append(item)
    plan.uploads = [upload for upload in store.unfinished() if now - upload.started_unix_seconds >= GRACE_SECONDS]
    return plan


def delete_garbage(store: ObjectStore, plan: GcPlan) -> int:
    """Delete what the plan lists and return the number of objects; each output's manifest goes first, alone.

    What a run that was planned meanwhile names is spared.
    """
    count = 0
    for item in plan.garbage:
        if item.prefix not in plan.kept and item.prefix in _named_by_later_runs(store, plan.runs):
            continue
        manifest = manifest_key(item.prefix)
        if manifest in item.keys:
            store.delete([manifest])
        store.delete([key for key in item.keys if key != manifest])
        count += len(item.keys)
    for upload in plan.uploads:
        store.discard(upload)
    return count


def _named_by_later_runs(store: ObjectStore, known: frozenset[str]) -> set[str]:
    plans = [read_plan(store, run_id) for run_id in newest_run_ids(store) if run_id not in known]
    return {task.output for plan in plans for task in plan.tasks.values()}


def _needed(
    store: ObjectStore, run_ids: list[str], keep_runs: int, now: float, keep_releases: int | None
) -> dict[str, str]:
    kept: dict[str, str] = {}
    signs = _last_signs(store)
    for position, run_id in enumerate(run_ids):
        try:
            run = read_plan(store, run_id)
        except MissingInputError:
            continue  # a folder without a plan is no run
        except CorruptObjectError:
            if position < keep_runs:
                raise
            continue  # any other error ends gc: what a store does not show may still be needed
        last_sign = max(run.created_unix_seconds, signs.get(run_id, 0.0))
        if position < keep_runs:
            reason = f"run {run_id} is one of the newest {keep_runs}"
        elif _may_go_on(store, run, now, last_sign):
            reason = f"run {run_id} has not succeeded and lived within 7 days"
        else:
            reason = ""
        if reason:
            for task in run.tasks.values():
                kept.setdefault(task.output, reason)
                source = task.config.get("source")
                if isinstance(source, dict) and source.get("kind") == "export":  # its model is trained on
                    kept.setdefault(str(source["export"]), reason)
    for name in release_names(store):
        served: dict[str, int] = {}
        for number, release in sorted(read_releases(store, name).items(), reverse=True):
            if release.export is not None:
                served.setdefault(release.export, number)
        for export, number in list(served.items())[:keep_releases]:
            _keep_ancestors(store, export, f"release {name} {number:04d}", kept)
    return kept


def _last_signs(store: ObjectStore) -> dict[str, float]:
    """Return when each run's plan or newest record was written, by run id, in one listing."""
    signs: dict[str, float] = {}
    for info in store.list("runs/"):
        run_id = info.key.split("/", 2)[1]
        signs[run_id] = max(signs.get(run_id, 0.0), info.modified_unix_seconds)
    return signs


def _may_go_on(store: ObjectStore, run: Plan, now: float, last_sign: float) -> bool:
    """Whether a run is under way, or failed a short time ago and may be asked to go on."""
    if now - last_sign >= GRACE_SECONDS:
        # a training of weeks writes no record meanwhile, but its heart beats
        beats = store.list(f"{run.tasks['train'].output}heartbeat-") if "train" in run.tasks else ()
        last_sign = max((info.modified_unix_seconds for info in beats), default=0.0)
    return now - last_sign < GRACE_SECONDS and state_of(store, run) != "succeeded"


def _keep_ancestors(store: ObjectStore, prefix: str, reason: str, kept: dict[str, str]) -> None:
    manifest = read_manifest(store, prefix) if prefix else None
    if manifest is None:
        return
    kept.setdefault(prefix, reason)
    for folder in manifest.inputs.values():
        _keep_ancestors(store, folder, reason, kept)


def _whole(store: ObjectStore, prefix: str, now: float) -> Garbage | None:
    objects = list(store.list(prefix))
    if not objects or _youngest_seconds(objects, now) < GRACE_SECONDS:
        return None
    return _garbage(prefix, "no kept run or release needs it", objects)


def _leftovers(store: ObjectStore, prefix: str, now: float) -> Garbage | None:
    manifest = read_manifest(store, prefix)
    if manifest is None:
        return None
    extra = [
        info
        for info in store.list(prefix)
        if _is_left_over(info, prefix, manifest) and now - info.modified_unix_seconds >= GRACE_SECONDS
    ]
    return _garbage(prefix, "objects of tries that its manifest does not list", extra) if extra else None


def _is_left_over(info: ObjectInfo, prefix: str, manifest: Manifest) -> bool:
    return info.key.startswith(f"{prefix}try-") and info.key not in {entry.path for entry in manifest.objects.values()}


def _garbage(prefix: str, reason: str, objects: list[ObjectInfo]) -> Garbage:
    manifest = manifest_key(prefix)
    keys = sorted((info.key for info in objects), key=lambda key: (key != manifest, key))
    return Garbage(prefix=prefix, reason=reason, keys=tuple(keys), size_bytes=sum(info.size_bytes for info in objects))


def _youngest_seconds(objects: list[ObjectInfo], now: float) -> float:
    return now - max(info.modified_unix_seconds for info in objects)
