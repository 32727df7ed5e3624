"""The fault campaign: ``python -m tests.faults.campaign --seed 1 --cases 600``; one seed alone is one case again."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tests.faults.campaign import workers
from tests.faults.campaign.bench import age, damaged_outputs
from tests.faults.campaign.cases import PAIRS, Result
from tests.faults.campaign.report import append_result, read_results, summary, write_report, write_results
from tests.micro_run import MicroWork
from tests.seaweed import start_seaweed

ROOT = Path(__file__).parents[3]


def main() -> int:
    """Run the cases, print each, write the table; 1 if any case ended badly."""
    flags = _flags()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    seeds = list(range(flags.seed, flags.seed + flags.cases))
    print(f"{len(seeds)} cases, seeds {seeds[0]} to {seeds[-1]}; one again: --seed SEED --cases 1", flush=True)
    kept = [result for result in read_results(flags.results) if result.seed in seeds] if flags.resume else []
    if kept:
        print(f"{len(kept)} of them ended well before, by {flags.results}", flush=True)
    write_results(flags.results, kept)
    started = time.monotonic()
    results = [*kept, *_run(sorted({*seeds} - {result.seed for result in kept}), flags)]
    wall_minutes = None if kept else (time.monotonic() - started) / 60
    print(summary(results, wall_minutes))
    if flags.report:
        write_report(flags.report, results, wall_minutes)
    bad = [result for result in results if result.problem]
    for result in bad:
        print(f"\nseed {result.seed} ({result.scope}: {result.kind}; {result.note}):\n{result.problem}")
    return 1 if bad else 0


def _run(seeds: list[int], flags: argparse.Namespace) -> list[Result]:
    """Run these cases; each is a line of the results' file as soon as it has ended."""
    if not seeds:
        return []
    with _folder() as folder, start_seaweed(folder / "s3") as s3:
        environ = {**s3.environ(), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        micro = MicroWork(folder / "micro")
        made = micro.run()
        if made.returncode:
            sys.exit(f"the undisturbed run failed: {made.stdout}{made.stderr}")
        age(micro.folder / "store")
        results = []
        started = time.monotonic()
        for result in _run_all(folder, micro, environ, seeds, flags.workers):
            append_result(flags.results, result)
            results.append(result)
        minutes = (time.monotonic() - started) / 60
        busy = sum(result.cpu_seconds for result in results) / 60
        print(
            f"cases={len(results)} minutes={minutes:.1f} cases_a_minute={len(results) / minutes:.1f}"
            f" cpu_minutes={busy:.1f} workers={flags.workers}",
            flush=True,
        )
        problem = damaged_outputs(micro.store)
        if problem:
            sys.exit(f"a case changed the undisturbed run's own files, which nobody may write to: {problem}")
    return results


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first case")
    parser.add_argument("--cases", type=int, default=5 * len(PAIRS), help="how many seeds from there on")
    parser.add_argument("--workers", type=int, default=2, help="cases side by side")
    parser.add_argument("--report", type=Path, help="file that gets the table of a whole run, docs/reliability.md")
    parser.add_argument("--results", type=Path, default=ROOT / "build/faults/results.jsonl", help="a line a case")
    parser.add_argument(
        "--resume", action="store_true", help="leave out the cases that ended well by the results' file"
    )
    return parser.parse_args()


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stagecoach-faults-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_all(
    folder: Path, micro: MicroWork, environ: dict[str, str], seeds: list[int], num_workers: int
) -> Iterator[Result]:
    """Yield results as they come; each worker is a process that forks stages and never has a thread."""
    context = multiprocessing.get_context("spawn")
    costs = folder / "costs.json"
    with ProcessPoolExecutor(1, context, workers.start, (folder / "measure", micro, environ, None)) as pool:
        pool.submit(workers.measure, costs).result()
    with ProcessPoolExecutor(num_workers, context, workers.start, (folder / "cases", micro, environ, costs)) as pool:
        waiting = [pool.submit(workers.run, seed) for seed in seeds]
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                yield _shown(future.result(), f"{number:4}/{len(seeds)}")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # the two that run clean up after themselves
            raise


def _shown(result: Result, position: str) -> Result:
    verdict = "BAD" if result.problem else ("ok" if result.hit else "ok, not hit")
    print(
        f"{position} seed {result.seed:5} {result.scope:10} {result.kind:20} exit {result.first_exit_code:4}"
        f" then {result.attempts} commands {result.seconds:6.1f} s, {result.cpu_seconds:5.1f} s of CPU {verdict}",
        flush=True,
    )
    if result.problem:
        print(f"     {result.note}: {result.problem}", flush=True)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
