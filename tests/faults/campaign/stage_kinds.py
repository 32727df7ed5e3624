"""The kinds of faults, done to one stage: each disturbs the task's command and says how that ended."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stagecoach.paths import manifest_key, plan_key
from stagecoach.plan_file import plan_bytes
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.bucket.gc import delete_garbage, plan_gc
from tests.faults.campaign import sabotage
from tests.faults.campaign.bench import OLD_SECONDS, OTHER_OBJECTS, StageWork, age
from tests.faults.campaign.cases import STREAM, STREAM_STEPS, Case
from tests.faults.campaign.processes import Child, fork
from tests.faulty_store import flip_bit
from tests.micro_run import RUN

KILLED = -signal.SIGKILL
STREAM_PART_BYTES = 4096
"""So small that every task has objects of several parts."""


@dataclass
class Disturbed:
    """How the disturbed command ended, and what a person does before the same command is given again."""

    exit_code: int
    hit: bool
    allowed: tuple[int, ...] = ()
    """Exit codes that are right for this kind, beside 0."""
    repair: Callable[[], str] = lambda: ""
    """Does what the error's sentence says; returns what went wrong with that."""
    note: str = ""


Kind = Callable[[StageWork, Case], Disturbed]


def kill_at_any_time(work: StageWork, case: Case) -> Disturbed:
    """SIGKILL to the process group, from its first moment to its last."""
    child = work.spawn()
    time.sleep(case.random.uniform(0.0, 0.97) * work.costs.seconds)
    child.kill()
    code = child.wait()
    return Disturbed(code, code == KILLED, (KILLED,))


def kill_between_objects(work: StageWork, case: Case) -> Disturbed:
    """SIGKILL before or after the n-th object or record is written; then once more, so that two tries lie there."""
    rng = case.random
    codes = []
    for _ in range(rng.choice((1, 1, 2))):
        number, after = rng.randint(1, work.costs.writes), rng.random() < 0.5
        codes.append(work.attempt(lambda n=number, a=after: sabotage.kill_at_write(n, after=a)))
    return Disturbed(codes[-1], KILLED in codes, (KILLED,))


def kill_in_the_commit(work: StageWork, case: Case) -> Disturbed:
    """SIGKILL before the manifest's put, inside it before or after the link, and after it."""
    moment = case.random.choice(("before", "before the link", "after the link", "after"))
    key = manifest_key(work.output)
    code = work.attempt(lambda: sabotage.kill_at_manifest(moment, key))
    return Disturbed(code, code == KILLED, (KILLED,), note=moment)


def disk_full(work: StageWork, case: Case) -> Disturbed:
    """The disk of the scratch folder or of the store has room for only a part of the output."""
    rng = case.random
    largest = max(entry.size_bytes for entry in work.bench.manifests[work.task].objects.values())
    total = work.bench.manifests[work.task].size_bytes
    where = rng.choice(("scratch", "store", "file size"))
    share = rng.uniform(0.0, 0.95)
    if where == "file size" or not can_mount():
        code = work.attempt(lambda: _limit_file_size(int(share * largest)))
        return Disturbed(code, code != 0, (69,), note="RLIMIT_FSIZE")
    free_bytes = int(share * (total + largest))
    if where == "scratch":
        small_disk(work.folder / "scratch", free_bytes, work.cleanups)
    else:
        small_disk(work.folder / "store", free_bytes, work.cleanups)
        work.others = work.snapshot()
    child = work.spawn()
    limit = time.monotonic() + 10
    while child.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    waited = child.poll() is None  # a training waits some minutes for room before it gives up
    grow_disk(work.folder / where)
    code = child.wait()
    return Disturbed(code, waited or code != 0, (69,), note=f"{where}{', and waited for room' if waited else ''}")


def clock_jump(work: StageWork, case: Case) -> Disturbed:
    """The wall clock jumps by up to years in both directions; half the time the stage is also killed."""
    rng = case.random
    kill = rng.random() < 0.5
    child = work.spawn(lambda: sabotage.jump_clock(rng))
    if kill:
        time.sleep(rng.uniform(0.1, 0.9) * work.costs.seconds)
        child.kill()
    return Disturbed(child.wait(), True, (KILLED,))


def bit_flip(work: StageWork, case: Case) -> Disturbed:
    """One bit of an input, of its manifest, of the plan, or of what a killed attempt has left."""
    return _damage(work, case, lambda data: flip_bit(case.random.randrange(8 * max(1, len(data))))(data))


def missing_object(work: StageWork, case: Case) -> Disturbed:
    """One of those objects is gone."""
    return _damage(work, case, lambda data: None)


def two_at_once(work: StageWork, case: Case) -> Disturbed:
    """Two equal tasks, of one run or of two."""
    return _at_once(work, case, 2)


def five_at_once(work: StageWork, case: Case) -> Disturbed:
    """Five equal tasks."""
    return _at_once(work, case, 5)


def gc_beside(work: StageWork, case: Case) -> Disturbed:
    """``gc --keep 0`` again and again while the stage works on inputs that are older than gc's grace."""
    assert isinstance(work.store, LocalStore)
    rng = case.random
    if rng.random() < 0.4:  # leftovers of an earlier try, old or young
        number = rng.randint(1, work.costs.writes)
        work.attempt(lambda: sabotage.kill_at_write(number, after=True))
    junk = ("packed/unneeded-aabbccddeeff00112233/try-00000001/x", "exports/gone-aabbccddeeff00112233/try-00000001/x")
    for key in junk:
        work.store.put(key, b"nobody needs this")
    if rng.random() < 0.5:
        age(work.store.root / work.output)
    for key in (*junk, *OTHER_OBJECTS):
        age((work.store.root / key).parent)
    work.others = work.snapshot()
    for key in junk:
        del work.others[key]
    seed = rng.random()
    collector = fork(work.folder / "log-gc", {}, lambda: _collect(work.store, random.Random(seed)))
    code = work.attempt()
    collector.kill()
    left = [key for key in junk if work.store.head(key) is not None]
    if left:
        delete_garbage(work.store, plan_gc(work.store, 0))
        left = [key for key in junk if work.store.head(key) is not None]
    note = f"gc left {left[0]}" if left else ""
    return Disturbed(code, True, (), lambda: note)


def s3_fault(work: StageWork, case: Case) -> Disturbed:
    """Requests fail between the stage and a real S3 server."""
    timeout = 0.4 if case.kind == "S3 hangs" else 20.0

    def prepare() -> None:
        if case.kind == STREAM:
            sabotage.quick_s3(timeout, STREAM_PART_BYTES)
            sabotage.small_blocks(STREAM_PART_BYTES)
        else:
            sabotage.quick_s3(timeout)

    for _ in range(STREAM_STEPS if case.kind == STREAM else 1):
        code = work.attempt(prepare)
        if code != 69:  # done, by a training that waited for the store, or badly
            break
    return Disturbed(code, True, (78,) if case.kind == "S3 denies" else (69,))


KINDS: dict[str, Kind] = {
    "kill at any time": kill_at_any_time,
    "kill between objects": kill_between_objects,
    "kill in the commit": kill_in_the_commit,
    "disk full": disk_full,
    "clock jump": clock_jump,
    "bit flip": bit_flip,
    "missing object": missing_object,
    "two at once": two_at_once,
    "five at once": five_at_once,
    "gc beside": gc_beside,
}


def _damage(work: StageWork, case: Case, change: Callable[[bytes], bytes | None]) -> Disturbed:
    rng = case.random
    what = rng.choice(("object", "object", "manifest", "plan", "left-over", "left-over"))
    if what == "left-over" or not work.entry.inputs:
        return _damage_left_over(work, rng, change)
    if what == "plan":
        put(work.store, plan_key(RUN), change(work.store.get(plan_key(RUN))))
        code = work.attempt()
        return Disturbed(code, code != 0, (66, 79), lambda: _new_plan(work), note="plan")
    name = rng.choice(sorted(work.entry.inputs))
    folder = work.entry.inputs[name]
    keys = sorted(info.key for info in work.store.list(folder + "try-")) or [
        info.key for info in work.store.list(folder) if info.key.endswith(".safetensors")
    ]
    key = manifest_key(folder) if what == "manifest" else rng.choice(keys)
    put(work.store, key, change(work.store.get(key)))
    work.others = work.snapshot()
    code = work.attempt()
    maker = next(task.task for task in work.bench.plan.tasks.values() if task.output == folder)
    return Disturbed(code, code != 0, (66, 79), lambda: _remake(work, maker, folder, code), note=f"{name} {what}")


def _damage_left_over(work: StageWork, rng: random.Random, change: Callable[[bytes], bytes | None]) -> Disturbed:
    """Kill the stage late, damage something that it has left, and give the command again: it must not be believed."""
    number = rng.randint(max(1, work.costs.writes // 2), work.costs.writes)
    work.attempt(lambda: sabotage.kill_at_write(number, after=False))
    keys = sorted(info.key for info in work.store.list(work.output))
    if not keys or manifest_key(work.output) in keys:
        return Disturbed(KILLED, False, (KILLED,), note="finished" if keys else "nothing was left")
    key = rng.choice(keys)
    put(work.store, key, change(work.store.get(key)))
    code = work.attempt()
    return Disturbed(code, True, (), note=f"left-over {key.removeprefix(work.output)}")


def _new_plan(work: StageWork) -> str:
    work.store.put(plan_key(RUN), plan_bytes(work.bench.plan))
    return ""


def _remake(work: StageWork, maker: str, folder: str, exit_code: int) -> str:
    """Delete the damaged output's manifest, as the sentence says, and make it again by its own command."""
    if exit_code:
        work.store.delete([manifest_key(folder)])
        code = work.remake_input(maker)
        work.others = work.snapshot()
        return f"{maker} could not be made again: {code}" if code else ""
    return ""


def _at_once(work: StageWork, case: Case, number: int) -> Disturbed:
    rng = case.random
    one_run = rng.random() < 0.5
    runs = [RUN if one_run else f"{RUN}-{index}" for index in range(number)]
    for run_id in runs:
        plan = work.bench.plan.model_copy(update={"run_id": run_id})
        work.store.put(plan_key(run_id), plan_bytes(plan))
    work.others = {key: value for key, value in work.snapshot().items() if not key.startswith(f"runs/{RUN}")}
    children: list[Child] = []
    for run_id in runs:
        children.append(work.spawn(None, run_id))
        time.sleep(rng.choice((0.0, 0.0, 0.02, 0.3)))
    codes = [child.wait() for child in children]
    for run_id in runs:
        work.store.delete([info.key for info in work.store.list(f"runs/{run_id}/")])
    work.store.put(plan_key(RUN), plan_bytes(work.bench.plan))
    # of one run the newest attempt at a training takes over and the others stop with 75, to be asked again
    allowed = (75,) if work.task == "train" and one_run else ()
    return Disturbed(
        next((code for code in codes if code), 0), True, allowed, note="one run" if one_run else "many runs"
    )


def _collect(store: ObjectStore, rng: random.Random) -> int:
    while True:
        delete_garbage(store, plan_gc(store, 0))
        time.sleep(rng.uniform(0.0, 0.05))


def put(store: ObjectStore, key: str, data: bytes | None) -> None:
    """Replace an object by other bytes, or delete it."""
    if data is None:
        store.delete([key])
    else:
        store.put(key, data)


def _limit_file_size(size_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, size_bytes), resource.RLIM_INFINITY))


_MS_REMOUNT = 32
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def can_mount() -> bool:
    """Whether this process may mount a small disk."""
    return os.geteuid() == 0


def small_disk(folder: Path, free_bytes: int, cleanups: list[Callable[[], None]]) -> None:
    """Mount a tmpfs over a folder: it holds what was there and has that much room beside."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    used_bytes = sum(-(-len(data) // 4096) * 4096 for data in kept.values())
    _mount(folder, 0, used_bytes + max(4096, free_bytes))
    cleanups.append(lambda: _unmount(folder))
    for name, data in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (time.time() - OLD_SECONDS,) * 2)


def grow_disk(folder: Path) -> None:
    """Give a small disk plenty of room, as a person does who frees some."""
    _mount(folder, _MS_REMOUNT, 256 << 20)


def _mount(folder: Path, flags: int, size_bytes: int) -> None:
    options = f"size={size_bytes // 4096 * 4096}".encode()
    if _libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options):
        raise OSError(ctypes.get_errno(), "mount", str(folder))


def _unmount(folder: Path) -> None:
    _libc.umount2(str(folder).encode(), _MNT_DETACH)
