"""The undisturbed micro run that every case starts from and is compared with, and a store of its own for each case."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecoach.manifest import Manifest, read_manifest
from stagecoach.paths import plan_key
from stagecoach.plan_file import Plan, plan_bytes
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach.storage.s3 import S3Options, S3Store
from stagecoach_workflows.bucket.verify import output_prefixes, verify_output
from tests.faults.campaign import sabotage
from tests.faults.campaign.processes import fork, stage
from tests.faults.campaign.proxy import counting_proxy
from tests.micro_run import RUN, MicroWork

TASKS_OF = {
    "download": ("download-model", "download-tokenizer", "download-data-demo"),
    **{name: (name,) for name in ("convert", "shard", "pack", "train", "export")},
}
OTHER_RUN = "20261124T010000Z-somebody-else"
OTHER_OBJECTS = {
    f"runs/{OTHER_RUN}/pack/0001.json": b'{"state": "started"}',
    "packed/theirs-00112233445566778899/try-0badcafe/train/tokens.bin": b"half of it",
    "trained/theirs-00112233445566778899/attempts/0001.json": b'{"run_id": "x"}',
    "trained/theirs-00112233445566778899/iter_0000002/attempt-0001/rank-00000.safetensors": b"half of it",
}
"""What another live run has in the store; no case may touch it."""
OLD_SECONDS = 8 * 24 * 3600.0


@dataclass(frozen=True)
class Costs:
    """What one undisturbed task does, for placing faults in it."""

    seconds: float
    writes: int
    requests: int
    """Of an S3 store."""


@dataclass
class Bench:
    """What a worker needs for its cases."""

    folder: Path
    micro: MicroWork
    s3_environ: dict[str, str]
    plan: Plan = field(init=False)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    costs: dict[str, Costs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what the undisturbed run made."""
        self.plan = self.micro.plan()
        for task in self.plan.tasks:
            manifest = self.micro.manifest(task)
            assert manifest is not None, f"{task} is not finished"
            self.manifests[task] = manifest

    def load_costs(self, file: Path) -> None:
        """Take what ``measure`` wrote."""
        self.costs = {task: Costs(**values) for task, values in json.loads(file.read_text()).items()}

    def measure(self, file: Path) -> None:
        """Run every task undisturbed and write down what it costs."""
        found = {}
        for task in self.plan.tasks:
            with self.work(task, f"measure-{task}", None) as work:
                counter = work.folder / "writes"
                started = time.monotonic()
                code = work.attempt(lambda counter=counter: sabotage.count_writes(counter))
                assert code == 0, work.log()
                writes = [key for key in counter.read_text().splitlines() if "heartbeat" not in key]
                seconds = time.monotonic() - started
            with counting_proxy(self.upstream) as proxy, self.work(task, f"count-{task}", proxy.endpoint_url) as work:
                assert work.attempt() == 0, work.log()
                found[task] = {"seconds": seconds, "writes": len(writes), "requests": proxy.requests.value}
        file.write_text(json.dumps(found))

    @property
    def upstream(self) -> str:
        """Address of the S3 server itself."""
        return self.s3_environ["STAGECOACH_S3_ENDPOINT_URL"]

    @contextmanager
    def work(self, task: str, name: str, s3_endpoint: str | None) -> Iterator[StageWork]:
        """Yield a store with what ``task`` needs and nothing that it makes, and what belongs to another run."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        work = StageWork(self, task, folder, s3_endpoint)
        try:
            work.fill()
            yield work
        finally:
            work.close()


class StageWork:
    """One task in a store of its own, to be disturbed, repeated and compared."""

    def __init__(self, bench: Bench, task: str, folder: Path, s3_endpoint: str | None) -> None:
        self.bench = bench
        self.task = task
        self.entry = bench.plan.task(task)
        self.folder = folder
        self.attempts = 0
        self.s3_prefix = f"{folder.name}-{secrets.token_hex(3)}" if s3_endpoint is not None else ""
        self.environ = {"STAGECOACH_SCRATCH": str(folder / "scratch"), "OMP_NUM_THREADS": "1"}
        self.store: ObjectStore = LocalStore(folder / "store")
        self.url = str(folder / "store")
        if s3_endpoint is not None:
            self.environ["STAGECOACH_S3_ENDPOINT_URL"] = s3_endpoint
            options = S3Options(endpoint_url=bench.upstream, addressing="path")
            self.store = S3Store("stagecoach", self.s3_prefix, options)
            self.url = f"s3://stagecoach/{self.s3_prefix}"
        self.others: dict[str, Any] = {}
        self.cleanups: list[Callable[[], None]] = []

    @property
    def output(self) -> str:
        """Folder of the task's output."""
        return self.entry.output

    @property
    def costs(self) -> Costs:
        """What the undisturbed task does."""
        return self.bench.costs[self.task]

    def fill(self) -> None:
        """Put the inputs, the plan and another run's objects into the store."""
        source = self.bench.micro.store
        keys = [info.key for folder in self.entry.inputs.values() for info in source.list(folder)]
        if isinstance(self.store, LocalStore):
            for key in keys:
                target = self.store.root / key
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source.root / key, target)
        else:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda key: self.store.put(key, source.get(key)), keys))
        self.store.put(plan_key(RUN), plan_bytes(self.bench.plan))
        self.store.put(plan_key(OTHER_RUN), plan_bytes(_other_plan(self.bench.plan)))
        for key, data in OTHER_OBJECTS.items():
            self.store.put(key, data)
        self.others = self.snapshot()

    def snapshot(self) -> dict[str, tuple[str, int]]:
        """Identity of every object that is neither in the task's output nor a record of the run."""
        ours = (self.output, f"runs/{RUN}/")
        return {info.key: (info.etag, info.size_bytes) for info in self.store.list("") if not info.key.startswith(ours)}

    def spawn(self, prepare: Any = None, run_id: str = RUN, **environ: str) -> Any:
        """Start the task's command; ``prepare`` is called in the child first."""
        self.attempts += 1

        def run() -> int:
            if prepare is not None:
                prepare()
            return stage(self.entry.stage, self.url, run_id, self.task)

        log = self.folder / f"log-{self.attempts}"
        return fork(log, {**self.environ, **environ}, run)

    def attempt(self, prepare: Any = None, **environ: str) -> int:
        """Run the task's command to its end and return its exit code."""
        return int(self.spawn(prepare, **environ).wait())

    def remake_input(self, task: str) -> int:
        """Run the command of a task whose output this one reads, after its manifest was deleted."""
        entry = self.bench.plan.task(task)
        others = StageWork(self.bench, task, self.folder / f"remake-{task}", None)
        source = self.bench.micro.store
        for folder in entry.inputs.values():
            for info in source.list(folder):
                if self.store.head(info.key) is None:
                    self.store.put(info.key, source.get(info.key))
        others.store, others.url = self.store, self.url
        return others.attempt()

    def log(self) -> str:
        """What the last command said."""
        file = self.folder / f"log-{self.attempts}"
        return file.read_text(errors="replace")[-3000:] if file.is_file() else ""

    def wrong(self) -> str:
        """Say what is wrong with a finished output, or nothing: its bits, or its absence while it is unfinished."""
        manifest = read_manifest(self.store, self.output)
        if manifest is None:
            return ""
        problems = verify_output(self.store, self.output)
        if problems:
            return f"a committed output is damaged: {problems[0].name}: {problems[0].sentence}"
        found, expected = digests(self.task, manifest), digests(self.task, self.bench.manifests[self.task])
        if found != expected:
            names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            return f"other bits than the undisturbed run's: {', '.join(names)[:300]}"
        return ""

    def touched(self) -> str:
        """Say which object of somebody else has changed, or nothing."""
        now = self.snapshot()
        changed = sorted(key for key in {*now, *self.others} if now.get(key) != self.others.get(key))
        return f"touched what belongs to others: {', '.join(changed)[:300]}" if changed else ""

    def close(self) -> None:
        """Delete everything."""
        for clean in self.cleanups:
            clean()
        if self.s3_prefix:
            self.store.delete([info.key for info in self.store.list("")])
        shutil.rmtree(self.folder, ignore_errors=True)


def _other_plan(plan: Plan) -> Plan:
    """A plan of an unfinished run that made half of the objects above."""
    tasks = {
        name: plan.tasks[name].model_copy(update={"output": f"{kind}/theirs-00112233445566778899/"})
        for name, kind in (("pack", "packed"), ("train", "trained"))
    }
    return plan.model_copy(update={"run_id": OTHER_RUN, "created_unix_seconds": time.time(), "tasks": tasks})


def digests(task: str, manifest: Manifest) -> dict[str, str]:
    """Return the digests that must be equal: of train the weights and moments, as its records hold times of day."""
    wanted = manifest.objects.items()
    if task == "train":
        return {name: entry.sha256 for name, entry in wanted if name.endswith(".safetensors")}
    return {name: entry.sha256 for name, entry in wanted}


def damaged_outputs(store: ObjectStore, but: str = "") -> str:
    """Say what is damaged among all finished outputs of a store but one, or nothing."""
    for prefix in output_prefixes(store):
        problems = verify_output(store, prefix) if prefix != but else []
        if problems:
            return f"{prefix}: {problems[0].name}: {problems[0].sentence}"
    return ""


def age(folder: Path, seconds: float = OLD_SECONDS) -> None:
    """Let every file below a folder be that much older."""
    then = time.time() - seconds
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            os.utime(file, (then, then))
