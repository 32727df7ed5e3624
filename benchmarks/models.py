"""How fast convert, shard and export move a model, and how much memory of their own they take.

    make bench-models                                     8 of Mistral-7B's 32 layers (4.0 GB), 3 rounds
    make bench-models ARGS="--layers 32 --rounds 1 --no-s3"    the whole model (14.5 GB)
    .. ARGS=--quick                                       1 layer, 1 round; writes no result, judges nothing

Random bf16 weights; every measurement runs in a fresh process, the two sides of a pair follow each other, the median of
their ratios counts.

Directory store: ``cp`` of the stage's input to its output's disk, ``sync`` of the copy, ``sha256sum`` of both, against
the whole stage: it checks its input, writes its output and hashes it. S3 (a SeaweedFS started for each stage): the store's own
``get_file`` of the input and ``put_file`` of as many bytes, against the stage. Peer, in the same run: transformers' load
and ``save_pretrained``. Memory is the peak of RssAnon: mapped files are not counted.
Disk: 5 times the weights (20 GB) with S3, 3 times without.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.floors import judge
from benchmarks.model_files import PREFIXES, finish, make_source, make_trained, weight_keys
from stagecoach.outputs import Input, Output, open_input
from stagecoach.recipe.convert import ConvertConfig
from stagecoach.recipe.export import ExportConfig
from stagecoach.recipe.shard import ShardConfig
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.local import LocalStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.local_s3 import running_s3_server

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "models.json"
READS = {"convert": "model", "shard": "native", "export": "trained"}
"""Stage -> the output whose weights it reads."""
WRITES = {"convert": "native", "shard": "shards", "export": "exports"}
INPUTS = {"convert": ("model", "tokenizer"), "shard": ("native",), "export": ("native", "tokenizer", "trained")}


@dataclass(frozen=True)
class Stage:
    """One stage as a call that another process can take."""

    name: str
    store_url: str
    scratch: Path

    def __call__(self) -> None:
        """Run it and commit its output."""
        store = open_store(self.store_url, Settings.from_environ())
        output = Output(store, PREFIXES[WRITES[self.name]], self.scratch / "out")
        inputs = {kind: open_input(store, PREFIXES[kind], self.scratch / "in") for kind in INPUTS[self.name]}
        self._run(inputs, output, store)
        finish(output)

    def _run(self, inputs: dict[str, Input], output: Output, store: ObjectStore) -> None:
        if self.name == "convert":
            from stagecoach_convert.run import run as convert

            convert(ConvertConfig(), inputs, output, store)
        elif self.name == "shard":
            from stagecoach_shard.run import run as shard

            shard(ShardConfig(tensor_parallel=4), inputs, output, store)
        else:
            from stagecoach_export.run import run as export

            export(ExportConfig(), inputs, output, store)


@dataclass(frozen=True)
class Copy:
    """What a stage's bytes cost at least on a directory: cp, sync, and sha256sum of both sides."""

    files: tuple[Path, ...]
    folder: Path

    def __call__(self) -> None:
        """Do it, one after the other."""
        copies = [self.folder / f"{at}.safetensors" for at in range(len(self.files))]
        for file, copy in zip(self.files, copies, strict=True):
            subprocess.run(["cp", file, copy], check=True)
            subprocess.run(["sync", copy], check=True)
        subprocess.run(["sha256sum", "--binary", *self.files, *copies], check=True, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Transfer:
    """What a stage's bytes cost at least on S3: the store's own download of the input, and upload of as many bytes."""

    store_url: str
    keys: tuple[str, ...]
    folder: Path

    def __call__(self) -> None:
        """Do it, one after the other, as the store's benchmark does."""
        store = open_store(self.store_url, Settings.from_environ())
        for at, key in enumerate(self.keys):
            store.get_file(key, self.folder / str(at))
        for at in range(len(self.keys)):
            store.put_file(f"transfer/{at}", self.folder / str(at))


@dataclass(frozen=True)
class Peer:
    """transformers: load the model and save it again."""

    source: Path
    target: Path

    def __call__(self) -> None:
        """Do it."""
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(self.source, dtype="bfloat16")
        model.save_pretrained(self.target)


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Run ``work`` in a fresh process, on a disk that has nothing left to write; return seconds and peak MiB.

    ``cpu_seconds`` are those of the process and its children, not of a server.
    """
    os.sync()
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[float, float, float]] = context.Queue()
    process = context.Process(target=_watched, args=(work, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work} failed")
    seconds, cpu, peak = queue.get()
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_anonymous_mib": round(peak, 1)}


def _watched(work: Callable[[], None], queue: Any) -> None:
    peak = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _anonymous_mib())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    thread.join()
    times = os.times()
    queue.put((seconds, sum(times[:4]), peak))


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def empty_folder(path: Path) -> Any:
    """Make a folder for the time of the block."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def pair(
    stage: Stage, store: ObjectStore, floor: Callable[[Path], Callable[[], None]], *, floor_first: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure what a stage's bytes cost at least, and the stage; its output stays in the store, an earlier one goes.

    Args:
        stage: What is measured.
        store: Its store.
        floor: Makes the other side, given an empty folder.
        floor_first: Which of the two comes first; rounds alternate.
    """
    found: dict[str, dict[str, float]] = {}
    for side in ("floor", "stage") if floor_first else ("stage", "floor"):
        if side == "floor":
            with empty_folder(stage.scratch / "floor") as folder:
                found[side] = measured(floor(folder))
        else:
            store.delete([info.key for info in store.list(PREFIXES[WRITES[stage.name]])])
            with empty_folder(stage.scratch / "in"), empty_folder(stage.scratch / "out"):
                found[side] = measured(stage)
    return found["floor"], found["stage"]


def summed(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Return the median share of the floor's speed, and every figure."""
    return {
        "share": round(statistics.median(floor["seconds"] / stage["seconds"] for floor, stage in pairs), 3),
        "seconds": [stage["seconds"] for _, stage in pairs],
        "floor_seconds": [floor["seconds"] for floor, _ in pairs],
        "cpu_seconds": [stage["cpu_seconds"] for _, stage in pairs],
        "floor_cpu_seconds": [floor["cpu_seconds"] for floor, _ in pairs],
        "peak_anonymous_mib": max(stage["peak_anonymous_mib"] for _, stage in pairs),
    }


def on_a_directory(root: Path, stage: str, rounds: int) -> dict[str, Any]:
    """Measure a stage on the directory store."""
    store = LocalStore(root / "store")
    files = [store.local_path(key) for key in weight_keys(store, READS[stage], root / "scratch")]
    floor = tuple(path for path in files if path is not None)
    call = Stage(stage, store.url, root)
    return summed(
        [pair(call, store, lambda folder: Copy(floor, folder), floor_first=number % 2 == 0) for number in range(rounds)]
    )


def on_s3(root: Path, stage: str, rounds: int) -> dict[str, Any]:
    """Measure a stage on a SeaweedFS that holds a copy of its inputs; a fresh one each round, as deletes free no disk."""
    found = []
    for number in range(rounds):
        with empty_folder(root / "server"), running_s3_server(root / "server") as server:
            os.environ.update(server.environ())
            url = f"s3://{server.bucket}/b"
            store = open_store(url, Settings.from_environ())
            fill(store, root, stage)
            keys = tuple(weight_keys(store, READS[stage], root / "scratch"))
            call = Stage(stage, url, root)

            def floor(folder: Path, url: str = url, keys: tuple[str, ...] = keys) -> Transfer:
                return Transfer(url, keys, folder)

            found.append(pair(call, store, floor, floor_first=number % 2 == 0))
    return summed(found)


def fill(store: ObjectStore, root: Path, stage: str) -> None:
    """Copy a stage's inputs out of the directory store, weights only of the one whose weights it reads."""
    local = LocalStore(root / "store")
    for kind in INPUTS[stage]:
        found = open_input(local, PREFIXES[kind], root / "scratch")
        for key in (f"{PREFIXES[kind]}manifest.json", *(found.entry(name).path for name in found.names())):
            if kind == READS[stage] or not key.endswith(".safetensors"):
                store.put_file(key, root / "store" / key)


def peer(root: Path) -> dict[str, float]:
    """Measure transformers on the source."""
    store = LocalStore(root / "store")
    model = open_input(store, PREFIXES["model"], root / "scratch")
    with empty_folder(root / "hub") as source, empty_folder(root / "peer") as target:
        for name in model.names():
            os.link(root / "store" / model.entry(name).path, source / name)
        return measured(Peer(source, target))


def measure(root: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the report."""
    store, scratch = LocalStore(root / "store"), root / "scratch"
    make_source(store, scratch, flags.layers)
    files = weight_keys(store, "model", scratch)
    report: dict[str, Any] = {
        "layers": flags.layers,
        "weights_gb": round(sum((root / "store" / key).stat().st_size for key in files) / 1e9, 3),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    if not flags.no_peer:
        report["transformers"] = peer(root)
        print("transformers", report["transformers"], flush=True)
    for stage in READS:
        if stage == "export":
            make_trained(store, scratch)
        if not flags.no_s3:
            report[f"s3_{stage}"] = on_s3(root, stage, flags.rounds)
            print(f"s3_{stage}", report[f"s3_{stage}"], flush=True)
        # last, as the next stage reads what it leaves, and first there is less on the disk
        report[stage] = on_a_directory(root, stage, flags.rounds)
        print(stage, report[stage], flush=True)
        store.delete(weight_keys(store, READS[stage], scratch))
    report["load_1_5_15_minutes"] = [round(value, 2) for value in os.getloadavg()]
    return report


def one_line(report: dict[str, Any]) -> dict[str, float]:
    """Return the figures by name: shares of the floor's speed, seconds, and the largest peak of a stage."""
    stages = {name: each for name, each in report.items() if name.removeprefix("s3_") in READS}
    line: dict[str, float] = {"weights_gb": report["weights_gb"]}
    line |= {f"{name}_share": each["share"] for name, each in stages.items()}
    line |= {f"{name}_seconds": statistics.median(each["seconds"]) for name, each in stages.items()}
    line["peak_anonymous_mib"] = max(each["peak_anonymous_mib"] for each in stages.values())
    if "transformers" in report:
        line |= {f"transformers_{name}": value for name, value in report["transformers"].items()}
    return line


def main() -> int:
    """Measure, write the result, and return 1 where a floor is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bench-models", help="emptied before and after")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--no-s3", action="store_true")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--quick", action="store_true")
    flags = parser.parse_args()
    if flags.quick:
        flags.layers, flags.rounds = 1, 1
    with empty_folder(flags.folder) as root:
        report = measure(root, flags)
    if flags.quick:
        print(" ".join(f"{name}={value}" for name, value in one_line(report).items()))
        return 0
    flags.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return judge("models", one_line(report), *(() if flags.no_s3 else ("models_s3",)))


if __name__ == "__main__":
    sys.exit(main())
