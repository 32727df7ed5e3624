"""What a checkpoint costs a training on CPU, and how soon a training goes on from one, beside torch.distributed.checkpoint.

    make bench-checkpoint              a model of 11 MB and one of 400 MB of state in two tensor-parallel processes
    make bench-checkpoint ARGS=--quick    the small one, 1 round; writes no result, judges nothing

Saving: the product's engine and writer, and torch's ``save`` and ``async_save`` of the same tensors, in one process a rank
(``checkpoint_rank.py``); every file is synced to the disk in all of them, ours are hashed besides. ``ours`` goes to a
directory, ``ours_s3`` to a SeaweedFS of its own.
Resuming: the train stage as a whole process in the layout that wrote the checkpoint and in others, from the process's
start to where its first step begins; every byte is checked. The peer builds the same engine and loads torch's checkpoint
in the layout that wrote it, by processes started in the same way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.floors import judge
from stagecoach.metrics_file import every_record
from stagecoach.paths import MANIFEST
from stagecoach.plan_file import read_plan
from stagecoach.storage.local import LocalStore
from stagecoach_workflows.local_s3 import running_s3_server

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "checkpoints.json"
SAVED_STEP = 2
NUM_STEPS = 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "same": {"tensor_parallel": 2},
    "fsdp2": {"data_parallel": 2, "data_parallel_kind": "fsdp"},
    "one": {},
}
"""Where a checkpoint of tensor_parallel 2 is resumed."""
SIZES = {"small": {}, "large": {"hidden_size": 512, "intermediate_size": 2048, "num_layers": 8, "num_heads": 8}}
"""Model -> what differs from the recipe tiny-cpu."""


def spec_of(size: str) -> dict[str, Any]:
    """Return the dimensions of a model, as the recipe makes it."""
    tiny: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    dims = {"family": "mistral", "vocab_size": 2048, "norm_eps": 1e-5, "rope_theta": 1e4, **tiny, **SIZES[size]}
    return {**dims, "sliding_window": 64, "head_dim": dims["hidden_size"] // dims["num_heads"]}


def on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(case, rank, port, ..)`` in a fresh process a rank; returns the results in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    case, *others = arguments
    with ProcessPoolExecutor(num_ranks, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(function, case, rank, port, *others) for rank in range(num_ranks)]
        return [each.result() for each in waiting]


def measure_saving(size: str, folder: Path, num_rounds: int) -> dict[str, Any]:
    """Measure every way of saving; leaves torch's checkpoint in ``folder``."""
    from benchmarks.checkpoint_rank import save_on_rank

    with running_s3_server(folder / "server") as server:
        os.environ.update(server.environ())
        urls = {"ours": f"file://{folder}/saved", "ours_s3": f"s3://{server.bucket}/saved"}
        return dict(on_ranks(2, save_on_rank, case_of(size), folder, urls, num_rounds)[0])


def case_of(size: str) -> Any:
    """Return the case of a model: about a second of steps while a checkpoint is written."""
    from benchmarks.checkpoint_rank import Case

    num_tokens, num_steps = (512, 30) if size == "small" else (256, 10)
    return Case(spec_of(size), LAYOUTS["same"], num_tokens, num_steps)


class Stage:
    """A training by hand in a directory store that stands at a checkpoint of step 2, its first attempt's."""

    def __init__(self, size: str, folder: Path) -> None:
        """Make the inputs by a run of the recipe, then train to the end once."""
        self.folder, self.url, self.attempt = folder, f"file://{folder}/store", 0
        changes = {
            **{f"model.source.{name}": value for name, value in SIZES[size].items()},
            "pack.pack_tokens": 256,
            "pack.heldout_num": 0,
            "train.steps": 1,
            "train.warmup_steps": 0,
            "train.evaluate_every_steps": "null",
            "train.micro_batch_packs": 1,
        }
        settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "stagecoach_workflows", "run", "tiny-cpu", "--store", self.url]
        _run([*command, "--work", str(folder / "work"), *settings])
        self.store = LocalStore(folder / "store")
        (run_id,) = self.store.list_folders("runs/")
        self.plan = read_plan(self.store, run_id).task("train")
        self.trained_seconds(LAYOUTS["same"])

    def trained_seconds(self, layout: dict[str, Any]) -> float:
        """Train to the end in a layout; returns the seconds from the process's start to where its first step begins."""
        steps = {"steps": NUM_STEPS, "save_every_steps": SAVED_STEP, "keep_last": NUM_STEPS}
        config = {**self.plan.config, **steps, "layout": layout}
        job = {"task": "train", "config": config, "inputs": self.plan.inputs, "name": "bench"}
        file = self.folder / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        began = time.time()
        _run([sys.executable, "-m", "stagecoach_train", "--store", self.url, "--config", str(file)])
        (name,) = (folder for folder in self.store.list_folders("trained/") if folder.startswith("bench-"))
        trained, self.attempt = f"trained/{name}/", self.attempt + 1
        records = every_record(self.store, trained)
        first = next(record for record in records if record["attempt"] == self.attempt and record["kind"] == "step")
        if self.attempt > 1 and first["step"] != SAVED_STEP + 1:
            raise SystemExit(
                f"expected attempt {self.attempt} to go on with step {SAVED_STEP + 1}, got {first['step']}"
            )
        self._back_to_checkpoint(trained)
        return float(first["unix_seconds"] - first["seconds"] - began)

    def _back_to_checkpoint(self, trained: str) -> None:
        """Remove the end of the training, its manifest first."""
        self.store.delete([trained + MANIFEST])
        self.store.delete([info.key for info in self.store.list(f"{trained}iter_{NUM_STEPS:07d}/")])


def measure_resuming(size: str, folder: Path, num_rounds: int) -> dict[str, Any]:
    """Measure resumes in every layout, torch's beside them; ``folder`` holds torch's checkpoint."""
    stage = Stage(size, folder)
    seconds: dict[str, list[float]] = {name: [] for name in (*LAYOUTS, "torch_same")}
    for _ in range(num_rounds):
        for name, layout in LAYOUTS.items():
            seconds[name].append(stage.trained_seconds(layout))
        began = time.time()
        ready = float(_run([sys.executable, "-m", "benchmarks.checkpoints", "--resume", size, str(folder)]))
        seconds["torch_same"].append(ready - began)
    return {
        name: {"seconds": round(statistics.median(each), 2), "all_seconds": [round(value, 2) for value in each]}
        for name, each in seconds.items()
    }


def print_torch_resume(size: str, folder: Path) -> None:
    """Resume from torch's checkpoint and print when the first step could begin, unix seconds."""
    from benchmarks.checkpoint_rank import torch_resume_on_rank

    print(max(on_ranks(2, torch_resume_on_rank, case_of(size), folder)))


def _run(command: list[str]) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def one_line(sizes: dict[str, Any]) -> dict[str, float]:
    """Return what ``floors.toml`` judges, and the seconds behind it."""
    line: dict[str, float] = {}
    for size, found in sizes.items():
        saving, resuming = found["saving"], found["resuming"]
        line |= {
            f"{size}_step_seconds": saving["step"],
            f"{size}_stall_seconds": saving["ours"]["stall"],
            f"{size}_async_save_stall_ratio": round(saving["torch_async_save"]["stall"] / saving["ours"]["stall"], 2),
            f"{size}_save_stall_ratio": round(saving["torch_save"]["stall"] / saving["ours"]["stall"], 2),
            f"{size}_written_seconds": saving["ours"]["written"],
            f"{size}_extra_seconds": saving["ours"]["extra"],
            f"{size}_async_save_extra_seconds": saving["torch_async_save"]["extra"],
            **{f"{size}_resume_{name}_seconds": each["seconds"] for name, each in resuming.items()},
        }
    return line


def main() -> int:
    """Measure, write the result, and return 1 where a floor is not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", default=",".join(SIZES), help="which models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--resume", nargs=2, metavar=("SIZE", "FOLDER"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.resume:
        print_torch_resume(flags.resume[0], Path(flags.resume[1]))
        return 0
    num_rounds = 1 if flags.quick else flags.rounds
    sizes: dict[str, Any] = {}
    for size in ["small"] if flags.quick else flags.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=flags.folder, prefix="bench-checkpoint-") as name:
            sizes[size] = {"spec": spec_of(size), "saving": measure_saving(size, Path(name), num_rounds)}
            print(size, json.dumps(sizes[size]["saving"]), flush=True)
            sizes[size]["resuming"] = measure_resuming(size, Path(name), num_rounds)
            print(size, json.dumps(sizes[size]["resuming"]), flush=True)
    if flags.quick:
        print(" ".join(f"{name}={value}" for name, value in one_line(sizes).items()))
        return 0
    report = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "rounds": num_rounds,
        "load_1_5_15_minutes": [round(value, 2) for value in os.getloadavg()],
        "sizes": sizes,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return judge("checkpoint", one_line(sizes))


if __name__ == "__main__":
    sys.exit(main())
