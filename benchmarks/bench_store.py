"""How fast the S3 store moves bytes, beside s5cmd at its defaults on the same server and the same machine.

    make bench-store                                 2 GiB up and down, 10,000 objects of 4 KiB put and got, 3 rounds;
                                                     then `stagecoach ls` among 10,000 runs, as a whole process
    python -m benchmarks.bench_store --s5cmd PATH    the same, with another s5cmd
    .. --quick                                       256 MiB, 1,000 objects and runs, 1 round; writes no result, judges nothing

Starts a SeaweedFS of its own. Each measurement of ours runs in a fresh process, whose peak memory is reported; time
counts from the opening of the store, without the start of the interpreter. s5cmd counts as a whole process. Rounds
alternate between the two, the median counts, and the SHA-256 of everything that came back is compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.floors import judge
from benchmarks.many_runs import measure_ls
from stagecoach.settings import Settings
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.local_s3 import running_s3_server

SMALL_BYTES = 4096
NUM_THREADS = 32
ROOT = Path(__file__).parents[1]
S5CMD = ROOT / "build/bench/s5cmd/bin/s5cmd"
RESULT = Path(__file__).with_name("results") / "store.json"


def big_up(store: ObjectStore, folder: Path) -> None:
    """Store one large file."""
    store.put_file("big", folder / "big")


def big_down(store: ObjectStore, folder: Path) -> None:
    """Copy one large object to a file."""
    store.get_file("big", folder / "ours" / "big")


def small_put(store: ObjectStore, folder: Path) -> None:
    """Store many small files."""
    names = sorted(os.listdir(folder / "small"))
    with ThreadPoolExecutor(NUM_THREADS) as executor:
        for _ in executor.map(lambda name: store.put(f"small/{name}", (folder / "small" / name).read_bytes()), names):
            pass


def small_get(store: ObjectStore, folder: Path) -> None:
    """Copy many small objects to files."""
    names = sorted(os.listdir(folder / "small"))
    target = folder / "ours" / "small"
    target.mkdir(exist_ok=True)
    with ThreadPoolExecutor(NUM_THREADS) as executor:
        for _ in executor.map(lambda name: (target / name).write_bytes(store.get(f"small/{name}")), names):
            pass


TASKS: dict[str, Callable[[ObjectStore, Path], None]] = {
    "big_up": big_up,
    "big_down": big_down,
    "small_put": small_put,
    "small_get": small_get,
}


def run_ours(task: str, folder: Path) -> dict[str, float]:
    """Run one task in a fresh process and return its seconds and peak MiB."""
    command = [sys.executable, "-m", "benchmarks.bench_store", "--child", task, "--folder", str(folder)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout))


def run_child(task: str, folder: Path) -> None:
    """Do one task in this process and print what it took."""
    open_store("s3://stagecoach/import-boto3-now", Settings.from_environ())
    begin = time.perf_counter()
    TASKS[task](open_store("s3://stagecoach/ours", Settings.from_environ()), folder)
    seconds = time.perf_counter() - begin
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib}))


def run_s5cmd(program: str, task: str, folder: Path, endpoint_url: str) -> float:
    """Run the same task with s5cmd and return its seconds."""
    arguments = {
        "big_up": [f"{folder}/big", "s3://stagecoach/s5cmd/big"],
        "big_down": ["s3://stagecoach/s5cmd/big", f"{folder}/s5cmd/big"],
        "small_put": [f"{folder}/small/*", "s3://stagecoach/s5cmd/small/"],
        "small_get": ["s3://stagecoach/s5cmd/small/*", f"{folder}/s5cmd/small/"],
    }[task]
    begin = time.perf_counter()
    subprocess.run([program, "--endpoint-url", endpoint_url, "cp", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def digest(path: Path) -> str:
    """Return one digest over a file, or over all files of a folder and their names."""
    whole = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        whole.update(file.name.encode())
        with open(file, "rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def make_inputs(folder: Path, big_bytes: int, num_small: int) -> None:
    """Write the files to be moved; random, so that nothing can be compressed away."""
    with open(folder / "big", "wb") as stream:
        for _ in range(big_bytes // 2**20):
            stream.write(os.urandom(2**20))
    (folder / "small").mkdir()
    for number in range(num_small):
        (folder / "small" / f"{number:05d}").write_bytes(os.urandom(SMALL_BYTES))
    for name in ("ours", "s5cmd"):
        (folder / name).mkdir()
    os.sync()


def measure(program: str, folder: Path, num_rounds: int, endpoint_url: str) -> dict[str, Any]:
    """Run all tasks on both sides, check what came back and return the figures."""
    figures: dict[str, Any] = {}
    for task in TASKS:
        ours, theirs = [], []
        for round_number in range(num_rounds):
            for side in (0, 1) if round_number % 2 else (1, 0):
                os.sync()
                if side == 0:
                    ours.append(run_ours(task, folder))
                else:
                    theirs.append(run_s5cmd(program, task, folder, endpoint_url))
        seconds = statistics.median(each["seconds"] for each in ours)
        figures[task] = {
            "seconds": round(seconds, 3),
            "s5cmd_seconds": round(statistics.median(theirs), 3),
            "ratio": round(statistics.median(theirs) / seconds, 3),
            "peak_mib": round(max(each["peak_mib"] for each in ours), 1),
            "all_seconds": [round(each["seconds"], 3) for each in ours],
            "all_s5cmd_seconds": [round(each, 3) for each in theirs],
        }
        print(task, figures[task], flush=True)
    for name in ("big", "small"):
        if len({digest(folder / side / name) for side in (".", "ours", "s5cmd")}) != 1:
            raise SystemExit(f"{name}: what came back differs from what was stored")
    return figures


def one_line(figures: dict[str, Any]) -> dict[str, float]:
    """Return what ``floors.toml`` judges: s5cmd's seconds over ours, seconds, and the largest peak."""
    line: dict[str, float] = {f"{task}_ratio": each["ratio"] for task, each in figures.items()}
    line |= {f"{task}_seconds": each["seconds"] for task, each in figures.items()}
    return {**line, "peak_mib": max(each["peak_mib"] for each in figures.values())}


def main() -> int:
    """Measure, write the result, and return 1 where a floor is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="instead of 3, or of 1 with --quick")
    parser.add_argument("--s5cmd", type=Path, default=S5CMD)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", choices=sorted(TASKS), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        run_child(flags.child, flags.folder)
        return 0
    if not flags.s5cmd.is_file():
        raise SystemExit(f"there is no s5cmd at {flags.s5cmd}: make bench-store installs it, --s5cmd names another")
    big_mib, num_small, num_rounds = (256, 1_000, 1) if flags.quick else (2048, 10_000, 3)
    num_rounds = flags.rounds or num_rounds
    with tempfile.TemporaryDirectory(dir=flags.folder, prefix="bench-store-") as name:
        folder = Path(name)
        make_inputs(folder, big_mib * 2**20, num_small)
        with running_s3_server(folder / "server") as server:
            os.environ.update(server.environ())
            figures = measure(str(flags.s5cmd), folder, num_rounds, server.endpoint_url)
            listing = measure_ls(num_small)
            print("ls", listing, flush=True)
    if flags.quick:
        return 0
    report: dict[str, Any] = {
        "big_mib": big_mib,
        "num_small": num_small,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "s5cmd": subprocess.run([flags.s5cmd, "version"], check=True, capture_output=True, text=True).stdout.strip(),
        "load_1_5_15_minutes": [round(value, 2) for value in os.getloadavg()],
        "tasks": figures,
        "ls": listing,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return judge("store", one_line(figures) | {"ls_seconds": listing["seconds"]})


if __name__ == "__main__":
    sys.exit(main())
