"""A finished run of eight GPUs in two attempts, written into a store as its stages would have left it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from stagecoach.outputs import Output
from stagecoach.paths import finished_prefix, metrics_key
from stagecoach.plan_file import Plan
from stagecoach.records import write_numbered, write_record
from stagecoach.settings import Settings
from stagecoach.storage.memory import MemoryStore
from stagecoach_workflows.plan import plan_run
from tests.unit.stagecoach_workflows.recipes import small_recipe

EVIL = "</td></svg><script>alert('x')</script><img src=x onerror=alert(1)>&\"'\x00\x1b[31m"
STEPS = 400


def write_run(store: MemoryStore, tmp_path: Path, run_id: str, *, text: str = "calm", lr: float = 1e-3) -> Plan:
    """Plan a run, finish all its tasks, and return the plan; ``text`` stands wherever data may put some."""
    recipe = small_recipe(
        f"train.lr={lr}",
        "train.gpus=8",
        "train.layout.data_parallel=8",
        "train.compute_dtype=bf16",
        f"train.steps={STEPS}",
        description=text,
    )
    plan = plan_run(recipe, store, Settings(), run_id)
    for task, entry in plan.tasks.items():
        output = Output(store, entry.output, tmp_path / "scratch")
        if task == "pack":
            output.summary.update(
                {"num_packs": 12_345, "num_documents": 200_000, "num_tokens": 50_000_000, "fill": 0.98}
            )
            output.write_bytes("report.json", json.dumps({"sources": [{"name": text, "rows_read": 7}]}).encode())
        if task == "train":
            _write_metrics(store, entry.output, text)
        output.commit(
            task=task,
            key=entry.key,
            name=entry.name,
            output_version=1,
            inputs=entry.inputs,
            config={"source": {"kind": text}, "files": [{"path": text, "size_bytes": 1, "sha256": text}]},
            timings={"started_unix_seconds": 0.0, "finished_unix_seconds": 40.0 if task == "train" else 4.0},
            provenance={"run_id": text},
        )
        write_record(
            store, run_id, task, {"state": "failed", "message": text} if task == "shard" else {"state": "done"}
        )
    write_numbered(store, finished_prefix(run_id), {"state": "succeeded"})
    return plan


def _write_metrics(store: MemoryStore, trained: str, text: str) -> None:
    """The first attempt ends after step 100; the second goes on from step 80, an hour of eight GPUs each."""
    for attempt, steps in ((1, range(101)), (2, range(80, STEPS + 1))):
        records: list[dict[str, Any]] = [
            {"kind": "start", "step": steps[0], "steps": STEPS, "device": "NVIDIA H100 80GB"}
        ]
        records += [_step(step) for step in steps[1:]]
        records += [_evaluation(step, text) for step in (steps[0], steps[-1])]
        records.append(
            {"kind": "answers", "step": steps[-1] if attempt == 2 else 0, "answers": _answers(text, attempt)}
        )
        for at, record in enumerate(records):
            record["unix_seconds"] = 10_000.0 * attempt + 3600 * at / (len(records) - 1)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        store.put_if_absent(metrics_key(trained, attempt, 1), lines.encode())


def _step(step: int) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "loss": 2.0 + 5.0 * math.exp(-step / 60),
        "lr": 1e-5 * min(1.0, step / 40),
        "tokens": 131_072,
        "tokens_per_second": 212_345.6 + step,
        "mfu": 0.5,
        "memory_gib": 61.25,
        "grad_norm": 1.0 + 1 / (step + 1),
    }


def _evaluation(step: int, text: str) -> dict[str, Any]:
    return {
        "kind": "evaluation",
        "step": step,
        "loss": 3.0,
        "accuracy": 0.5,
        "per_source": {text: 3.0},
        "documents": [],
    }


def _answers(text: str, attempt: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Say {text}", "answer": f"{text} {attempt}"},
        {"prompt": "Add 2 and 3.", "answer": text, "expected": text, "right": attempt == 2},
    ]
