"""How long ``stagecoach ls`` takes among very many runs; part of ``make bench-store``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stagecoach.manifest import Manifest
from stagecoach.paths import finished_prefix, log_key, manifest_key, numbered, plan_key
from stagecoach.plan_file import plan_bytes
from stagecoach.sealed import seal
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.plan import make_plan
from stagecoach_workflows.recipes_shipped import load_recipe

ROOT = Path(__file__).parents[1]
STORE = "s3://stagecoach/many-runs"
NUM_THREADS = 32
NUM_ROUNDS = 3
LIMIT = 50


def measure_ls(num_runs: int) -> dict[str, Any]:
    """Put that many finished runs into the store, list the newest fifty as a user does, and return the figures."""
    store = open_store(STORE, Settings.from_environ())
    with ThreadPoolExecutor(NUM_THREADS) as executor:
        for _ in executor.map(lambda item: store.put(*item), _objects(num_runs)):
            pass
    command = [sys.executable, "-m", "stagecoach_workflows", "ls", "--json", "--limit", str(LIMIT), "--store", STORE]
    all_seconds = []
    for _ in range(NUM_ROUNDS):
        begin = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        all_seconds.append(time.perf_counter() - begin)
        rows = json.loads(done.stdout)
        expected = [_run_id(number) for number in range(num_runs - 1, num_runs - 1 - LIMIT, -1)]
        if [row["run_id"] for row in rows] != expected or {row["step"] for row in rows} != {8}:
            raise SystemExit(f"ls: expected the newest {LIMIT} of {num_runs} runs with their steps, got {rows[:2]}")
    return {
        "num_runs": num_runs,
        "seconds": round(statistics.median(all_seconds), 3),
        "all_seconds": [round(seconds, 3) for seconds in all_seconds],
    }


def _run_id(number: int) -> str:
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    return f"{began:%Y%m%dT%H%M%SZ}-many"


def _objects(num_runs: int) -> Iterator[tuple[str, bytes]]:
    """Yield each run's plan, finish record, a chunk of a log and what its training ended with."""
    plan = make_plan(load_recipe("micro"), MemoryStore("many-runs"), Settings(), _run_id(0))
    train = plan.tasks["train"]
    ended = seal({"state": "succeeded", "exit_code": 0})
    log = b"2026-01-01 00:00:00,000 I stagecoach: a line of a log\n" * 40
    for number in range(num_runs):
        run_id = _run_id(number)
        output = f"trained/many-{number:020d}/"
        tasks = {**plan.tasks, "train": train.model_copy(update={"output": output})}
        yield plan_key(run_id), plan_bytes(plan.model_copy(update={"run_id": run_id, "tasks": tasks}))
        yield numbered(finished_prefix(run_id), 1), ended
        yield log_key(run_id, "train", 1, 1), log
        summary = {"last": 8, "last_loss": 1.0}
        manifest = Manifest(
            task="train", key=f"{number:020d}", name="many", output_version=1, objects={}, summary=summary
        )
        yield manifest_key(output), seal(manifest.model_dump(mode="json"))
