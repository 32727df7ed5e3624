"""How full packs get, how long planning takes, and how evenly their work can be shared, against other packers.

    python benchmarks/packing.py        writes results/packing.json, exits 1 beyond a limit of floors.toml

Documents are lognormal with mean 1,010 tokens, as many as the seed system's mixture has (78,385), and a million.
Peers: the seed's next-fit over documents sorted by falling length (one slot kept for a separator), first-fit over
eight open packs, and next-fit in order of arrival. The imbalance is the excess of the dearest of four ranks over the
mean in a micro-step, with one pack a micro-batch and 32 packs a step, shared as training shares them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.floors import judge
from stagecoach_pack.packing import plan_packs
from stagecoach_train.data import share_step

Lengths = npt.NDArray[np.int64]
_RANKS, _PACKS_PER_STEP = 4, 32
OURS = "stagecoach: best-fit decreasing"


def lognormal_lengths(number: int, mean_tokens: float, capacity: int) -> Lengths:
    """Return document lengths, clipped to a pack."""
    draw = np.random.default_rng(0).lognormal(0.0, 1.0, number)
    return np.asarray(np.clip(draw / draw.mean() * mean_tokens, 1, capacity), np.int64)


def next_fit_decreasing(lengths: Lengths, capacity: int) -> int:
    """Return the packs that the seed's packer makes: longest first, one open pack, a separator before each document."""
    packs, used = 0, capacity
    for length in np.sort(lengths)[::-1].tolist():
        if length >= capacity:
            packs += 1
        elif used + length + 1 <= capacity:
            used += length + 1
        else:
            packs, used = packs + 1, length
    return packs


def next_fit(lengths: Lengths, capacity: int) -> int:
    """Return the packs of one open pack, documents in order of arrival."""
    packs, used = 0, capacity
    for length in lengths.tolist():
        if used + length > capacity:
            packs, used = packs + 1, 0
        used += length
    return packs


def first_fit_of_eight(lengths: Lengths, capacity: int) -> int:
    """Return the packs of eight open packs, documents in order of arrival; the fullest is closed where none has room."""
    packs, free = 0, [0] * 8
    for length in lengths.tolist():
        place = next((index for index, space in enumerate(free) if space >= length), None)
        if place is None:
            place = free.index(min(free))
            packs, free[place] = packs + 1, capacity
        free[place] -= length
    return packs


def best_fit(lengths: Lengths, capacity: int) -> int:
    """Return the packs of the pack stage, with its default limit on documents."""
    return len(plan_packs(lengths, capacity, 1024, 0)[1])


PACKERS: dict[str, Callable[[Lengths, int], int]] = {
    "seed: next-fit decreasing": next_fit_decreasing,
    "next-fit, arrival": next_fit,
    "first-fit, 8 open": first_fit_of_eight,
    OURS: best_fit,
}


def imbalance(lengths: Lengths, capacity: int) -> float:
    """Return the mean excess of the dearest of four ranks over their mean, a micro-step."""
    order, counts = plan_packs(lengths, capacity, 1024, 0)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    tokens = np.add.reduceat(lengths[order], first)
    squares = np.add.reduceat(lengths[order] ** 2, first)
    costs = tokens + squares / (12 * 4096)
    excess = []
    for step in range(len(counts) // _PACKS_PER_STEP):
        packs = list(range(step * _PACKS_PER_STEP, (step + 1) * _PACKS_PER_STEP))
        shared = share_step(packs, costs, _RANKS, 1, _PACKS_PER_STEP // _RANKS)
        work = np.array([[sum(costs[pack] for pack in group) for group in rank] for rank in shared])
        excess.append(float((work.max(axis=0) / work.mean(axis=0)).mean() - 1))
    return float(np.mean(excess))


def measured(number: int, mean_tokens: float, capacity: int) -> dict[str, Any]:
    """Return fill and seconds of every packer on one case."""
    lengths = lognormal_lengths(number, mean_tokens, capacity)
    found: dict[str, Any] = {"documents": number, "mean_tokens": mean_tokens, "pack_tokens": capacity}
    for name, packer in PACKERS.items():
        start = time.perf_counter()
        packs = packer(lengths, capacity)
        seconds = round(time.perf_counter() - start, 3)
        found[name] = {"packs": packs, "fill": round(int(lengths.sum()) / (packs * capacity), 5), "seconds": seconds}
    found["imbalance of 4 ranks a micro-step"] = round(imbalance(lengths, capacity), 5)
    return found


def a_million(_: int) -> dict[str, float]:
    """Plan a million documents; run in a process of its own, whose peak of memory is reported, Python included."""
    lengths = lognormal_lengths(1_000_000, 1010, 16_384)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        best_fit(lengths, 16_384)
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(min(seconds), 2), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> int:
    """Measure all cases, print one line for each, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results_file = Path(__file__).with_name("results") / "packing.json"
    parser.add_argument("--result", type=Path, metavar="FILE", default=results_file, help="all figures, as JSON")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        million = pool.map(a_million, [0])[0]
    results = []
    for case in [(78_385, 1010, 16_384), (78_385, 1010, 4_096), (78_385, 6000, 16_384)]:
        results.append(measured(*case))
        print(json.dumps(results[-1]), flush=True)
    options.result.write_text(json.dumps({"cases": results, "a million documents": million}, indent=1) + "\n")
    long, short = results[0], results[1]
    worst = max(result["imbalance of 4 ranks a micro-step"] for result in (long, short))
    return judge(
        "packing",
        {
            "fill_16384": long[OURS]["fill"],
            "fill_4096": short[OURS]["fill"],
            "seed_fill_16384": long["seed: next-fit decreasing"]["fill"],
            "seed_fill_4096": short["seed: next-fit decreasing"]["fill"],
            "imbalance": worst,
            "million_seconds": million["seconds"],
            "million_mib": million["mib"],
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
