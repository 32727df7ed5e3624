"""Runs one case: disturb, look, repeat the same command until it ends well, look again."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tests.faults.campaign import sabotage
from tests.faults.campaign.bench import TASKS_OF, Bench, StageWork
from tests.faults.campaign.cases import STREAM, STREAM_STEPS, WHOLE, Case, Result
from tests.faults.campaign.proxy import Plot, Proxy, StreamOutage, failing_proxy
from tests.faults.campaign.stage_kinds import KINDS, STREAM_PART_BYTES, Disturbed, s3_fault
from tests.faults.campaign.whole_kinds import Whole, disturb

MAX_ATTEMPTS = 4
RETRYABLE = (69, 71, 75)


def run_case(bench: Bench, case: Case) -> Result:
    """Run a case and say how it ended; whatever it raises is a problem of its own."""
    started, cpu_started = time.monotonic(), sum(os.times()[:4])
    try:
        fields = _run_whole(bench, case) if case.scope == WHOLE else _run_stage(bench, case)
    except Exception:
        fields = {"hit": False, "first_exit_code": -1, "attempts": 0, "problem": traceback.format_exc()[-1500:]}
    seconds = round(time.monotonic() - started, 2)
    cpu_seconds = round(sum(os.times()[:4]) - cpu_started, 2)
    return Result(seed=case.seed, scope=case.scope, kind=case.kind, seconds=seconds, cpu_seconds=cpu_seconds, **fields)


def _run_stage(bench: Bench, case: Case) -> dict[str, Any]:
    # of the downloads only this one goes on after its source was cut, and must not take a failing store for that
    tasks = ("download-data-demo",) if (case.scope, case.kind) == ("download", STREAM) else TASKS_OF[case.scope]
    task = case.random.choice(tasks)
    proxied: AbstractContextManager[Proxy | None] = nullcontext(None)
    if case.on_s3:
        plot = _plot(bench, case, task)
        proxied = failing_proxy(bench.upstream, case.kind, case.random, plot)
    with proxied as proxy, bench.work(task, f"case-{case.seed}", proxy.endpoint_url if proxy else None) as work:
        if proxy is None:
            disturbed = KINDS[case.kind](work, case)
        else:
            disturbed = s3_fault(work, case)
            disturbed.hit = proxy.hits.value >= (STREAM_STEPS * sabotage.S3_TRIES if case.kind == STREAM else 1)
            disturbed.note = f"{proxy.hits.value} requests failed"
            work.environ["STAGECOACH_S3_ENDPOINT_URL"] = bench.upstream
        return {
            "hit": disturbed.hit,
            "first_exit_code": disturbed.exit_code,
            "note": f"{task}: {disturbed.note}".rstrip(": "),
            **_after(work, disturbed),
        }


def _plot(bench: Bench, case: Case, task: str) -> Plot | StreamOutage:
    if case.kind != STREAM:
        return Plot.of(case.random, case.kind, bench.costs[task].requests)
    objects = bench.manifests[task].objects
    objects_parts = {name: -(-entry.size_bytes // STREAM_PART_BYTES) for name, entry in objects.items()}
    return StreamOutage.of(case.random, objects_parts, sabotage.S3_TRIES)


def _after(work: StageWork, disturbed: Disturbed) -> dict[str, Any]:
    """Look at what the disturbed command left, give the same command again, and look at what it made."""
    said = work.log()
    if disturbed.exit_code not in (0, *disturbed.allowed):
        expected = ", ".join(map(str, (0, *disturbed.allowed)))
        return _problem(work, f"exit code {disturbed.exit_code}, expected one of {expected}: {said}")
    problem = work.wrong() or work.touched() or disturbed.repair()
    if problem:
        return _problem(work, f"after the fault: {problem}")
    for _ in range(MAX_ATTEMPTS):
        code = work.attempt()
        if code not in RETRYABLE:
            break
    if code:
        return _problem(work, f"the same command ended with {code}: {work.log()}")
    if work.store.head(work.output + "manifest.json") is None:
        return _problem(work, "the same command ended with 0 and without an output")
    problem = work.wrong() or work.touched()
    return _problem(work, f"after the recovery: {problem}" if problem else "")


def _problem(work: StageWork, problem: str) -> dict[str, Any]:
    return {"attempts": work.attempts, "problem": problem}


def _run_whole(bench: Bench, case: Case) -> dict[str, Any]:
    folder = bench.folder / f"case-{case.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    whole = Whole(bench, folder, case.on_s3)
    try:
        code, hit, note, run_id = disturb(whole, case)
        fields: dict[str, Any] = {"hit": hit, "first_exit_code": code, "note": note}
        problem = "" if case.kind in ("bit flip", "missing object") else whole.wrong()
        if problem:
            return {**fields, "attempts": whole.attempts, "problem": f"after the fault: {problem}"}
        for _ in range(MAX_ATTEMPTS):
            code = whole.run(run_id)
            if code not in RETRYABLE:
                break
        problem = f"the same command ended with {code}: {whole.log()}" if code else whole.wrong()
        return {**fields, "attempts": whole.attempts, "problem": problem}
    finally:
        whole.cleanups.close()
        if case.on_s3:
            whole.store.delete([info.key for info in whole.store.list("")])
        shutil.rmtree(folder, ignore_errors=True)
