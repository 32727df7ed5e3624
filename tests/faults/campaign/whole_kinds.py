"""The kinds of faults, done to the real command line from outside: ``stagecoach run micro`` in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from stagecoach.faults import AFTER_LAST_OBJECT, BETWEEN_CHECKPOINT_OBJECTS
from stagecoach.manifest import read_manifest
from stagecoach.paths import manifest_key
from stagecoach.settings import child_environ
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.s3 import S3Options, S3Store
from stagecoach_workflows.bucket.gc import delete_garbage, plan_gc
from tests.faults.campaign.bench import Bench, age, damaged_outputs, digests
from tests.faults.campaign.cases import Case
from tests.faults.campaign.processes import fork
from tests.faults.campaign.proxy import Plot, failing_proxy
from tests.faults.campaign.stage_kinds import can_mount, grow_disk, put, small_disk
from tests.faulty_store import flip_bit
from tests.micro_run import RUN, MicroWork

WHOLE_SECONDS = 8.0
"""About what an undisturbed run takes; kills are spread over this time."""
LIMIT_SECONDS = 900


class Whole:
    """One run of the micro recipe in a work folder of its own."""

    def __init__(self, bench: Bench, folder: Path, on_s3: bool) -> None:
        self.bench = bench
        self.work = MicroWork(folder)
        self.attempts = 0
        self.environ: dict[str, str] = {}
        self.arguments: tuple[str, ...] = ()
        self.store: ObjectStore = self.work.store
        self.unread = ""
        self.cleanups = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        if on_s3:
            upstream = bench.upstream
            self.store = S3Store("stagecoach", folder.name, S3Options(endpoint_url=upstream, addressing="path"))
            self.arguments = ("--store", f"s3://stagecoach/{folder.name}")

    def start(self, run_id: str = RUN, **environ: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.attempts += 1
        with open(self.work.folder / f"log-{self.attempts}", "wb") as log:
            return subprocess.Popen(
                self.work.command(*self.arguments, run_id=run_id),
                env=child_environ(**{**self.work.environment(), **self.environ, **environ}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, run_id: str = RUN, **environ: str) -> int:
        """Run the command to its end."""
        return self.start(run_id, **environ).wait(LIMIT_SECONDS)

    def log(self) -> str:
        """What the last command said, and the stage that failed."""
        return (self.work.folder / f"log-{self.attempts}").read_text(errors="replace")[-2000:]

    def wrong(self) -> str:
        """Say what is wrong with any finished output, or nothing."""
        damaged = damaged_outputs(self.store, self.unread)
        if damaged:
            return damaged
        for task, expected in self.bench.manifests.items():
            manifest = read_manifest(self.store, self.bench.plan.task(task).output)
            if manifest is not None and digests(task, manifest) != digests(task, expected):
                return f"{task}: other bits than the undisturbed run's"
        return ""


def disturb(whole: Whole, case: Case) -> tuple[int, bool, str, str]:
    """Do what the case says; returns exit code, whether the fault met the run, a note, and the run id to go on with."""
    kind = case.kind
    if kind == "kill at any time":
        return _kill_any_time(whole, case)
    if kind in ("kill between objects", "kill in the commit"):
        point = BETWEEN_CHECKPOINT_OBJECTS if kind == "kill between objects" else AFTER_LAST_OBJECT
        code = whole.run(STAGECOACH_FAULT=point)
        return code, code != 0, point, RUN
    if kind == "disk full":
        return _disk_full(whole, case)
    if kind in ("bit flip", "missing object"):
        return _damage(whole, case)
    if kind in ("two at once", "five at once"):
        return _at_once(whole, case, 2 if kind == "two at once" else 5)
    if kind == "gc beside":
        return _gc_beside(whole)
    upstream = whole.bench.upstream
    plot = Plot.of(case.random, kind, sum(each.requests for each in whole.bench.costs.values()))
    with failing_proxy(upstream, kind, case.random, plot) as proxy:
        code = whole.run(STAGECOACH_S3_ENDPOINT_URL=proxy.endpoint_url)
        return code, proxy.hits.value > 0, f"{proxy.hits.value} requests failed", RUN


def _kill_any_time(whole: Whole, case: Case) -> tuple[int, bool, str, str]:
    """SIGKILL to the command, or to whichever stage runs then."""
    victim = case.random.choice(("command", "stage"))
    process = whole.start()
    time.sleep(case.random.uniform(0.3, 1.0) * WHOLE_SECONDS)
    group = process.pid if victim == "command" else next(iter(_stages(process.pid)), process.pid)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    code = process.wait(LIMIT_SECONDS)
    return code, code != 0, victim, RUN


def _stages(command: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{command}/task/{command}/children").read_text().split()]
    return []


def _disk_full(whole: Whole, case: Case) -> tuple[int, bool, str, str]:
    where = case.random.choice(("store", "scratch"))
    size_bytes = int(case.random.uniform(0.05, 0.9) * (2_400_000 if where == "store" else 700_000))
    if not can_mount():
        return 0, False, "needs root to mount a small disk", RUN
    folder = whole.work.folder / where
    cleanups: list[Callable[[], None]] = []
    small_disk(folder, size_bytes, cleanups)
    whole.cleanups.callback(lambda: [clean() for clean in cleanups])
    process = whole.start()
    with suppress(subprocess.TimeoutExpired):
        process.wait(2.5 * WHOLE_SECONDS)
    waited = process.poll() is None  # a training waits some minutes for room before it gives up
    grow_disk(folder)
    code = process.wait(LIMIT_SECONDS)
    return code, waited or code != 0, f"{where}{', and waited for room' if waited else ''}", RUN


def _damage(whole: Whole, case: Case) -> tuple[int, bool, str, str]:
    """Damage a finished store, take away what depends on it, and ask for the same again."""
    shutil.copytree(whole.bench.micro.folder / "store", whole.work.folder / "store")
    tasks = whole.bench.plan.tasks.values()
    inputs = sorted({folder for task in tasks for folder in task.inputs.values()})
    damaged = case.random.choice(inputs)
    keys = sorted(info.key for info in whole.store.list(damaged))
    key = case.random.choice(keys)
    data = whole.store.get(key)
    flipped = flip_bit(case.random.randrange(8 * max(1, len(data))))(data)
    put(whole.store, key, flipped if case.kind == "bit flip" else None)
    gone = {damaged}
    for task in tasks:  # in an order in which they may run: what depends on it, and what depends on that
        if gone & set(task.inputs.values()):
            gone.add(task.output)
            whole.store.delete([info.key for info in whole.store.list(task.output)])
    again = f"{RUN}-again"
    code = whole.run(again)
    if code:
        whole.store.delete([manifest_key(damaged)])  # what the error's sentence says
        return code, True, key, again
    whole.unread = damaged
    return code, False, f"{key}, which nobody reads", again


def _at_once(whole: Whole, case: Case, number: int) -> tuple[int, bool, str, str]:
    processes = []
    for index in range(number):
        processes.append(whole.start(f"{RUN}-{index}"))
        time.sleep(case.random.choice((0.0, 0.1, 0.5)))
    codes = [process.wait(LIMIT_SECONDS) for process in processes]
    return next((code for code in codes if code), 0), True, f"exit codes {codes}", f"{RUN}-0"


def _gc_beside(whole: Whole) -> tuple[int, bool, str, str]:
    """Everything but export is there and old; gc runs all the time."""
    store = whole.work.store
    shutil.copytree(whole.bench.micro.folder / "store", store.root, ignore=shutil.ignore_patterns("runs"))
    for task in ("train", "export"):
        store.delete([info.key for info in store.list(whole.bench.plan.task(task).output)])
    process = whole.start()
    limit = time.monotonic() + 60
    while not any(True for _ in store.list(f"runs/{RUN}/plan.json")) and time.monotonic() < limit:
        time.sleep(0.002)
    age(store.root / "sources")
    age(store.root / "native")

    def collect() -> int:
        while True:
            delete_garbage(store, plan_gc(store, 0))

    collector = fork(whole.work.folder / "log-gc", {}, collect)
    code = process.wait(LIMIT_SECONDS)
    collector.kill()
    return code, True, "", RUN
