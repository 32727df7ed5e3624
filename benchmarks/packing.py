"""How full packs get, how long planning takes, and how evenly their work can be shared, against other packers.

    python -m benchmarks.packing        writes results/packing.json, exits 1 beyond a limit of floors.toml

Documents are lognormal with mean 1,010 tokens, as many as the seed system's mixture has (78,385), and a million.
Peers (`packers.py`): the seed's next-fit over documents sorted by falling length (one slot kept for a separator), TRL's
"bfd" and "wrapped" as its trainer calls them, a thousand documents at a time (as many packs as `trl` 1.16.0 makes of
the same documents, and as ours if it is given all as one batch: compared), first-fit over eight open packs, and
next-fit in order of arrival. The imbalance is the excess of the dearest of four ranks over the mean in a micro-step,
with one pack a micro-batch and 32 packs a step, shared as training shares them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.floors import judge
from benchmarks.packers import OURS, PACKERS, SEED, TRL_BFD, TRL_WRAPPED, Lengths
from stagecoach_pack.packing import plan_packs
from stagecoach_train.data import share_step

_RANKS, _PACKS_PER_STEP = 4, 32


def lognormal_lengths(number: int, mean_tokens: float, capacity: int) -> Lengths:
    """Return document lengths, clipped to a pack."""
    draw = np.random.default_rng(0).lognormal(0.0, 1.0, number)
    return np.asarray(np.clip(draw / draw.mean() * mean_tokens, 1, capacity), np.int64)


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
    """Return fill, cut documents and seconds of every packer on one case."""
    lengths = lognormal_lengths(number, mean_tokens, capacity)
    found: dict[str, Any] = {"documents": number, "mean_tokens": mean_tokens, "pack_tokens": capacity}
    for name, packer in PACKERS.items():
        start = time.perf_counter()
        packs, cut = packer(lengths, capacity)
        seconds = round(time.perf_counter() - start, 3)
        fill = round(int(lengths.sum()) / (packs * capacity), 5)
        found[name] = {"packs": packs, "fill": fill, "cut_documents": cut, "seconds": seconds}
    found["imbalance of 4 ranks a micro-step"] = round(imbalance(lengths, capacity), 5)
    return found


def a_million(name: str) -> dict[str, float]:
    """Plan a million documents; run in a process of its own, whose peak of memory is reported, Python included."""
    lengths = lognormal_lengths(1_000_000, 1010, 16_384)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        PACKERS[name](lengths, 16_384)
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(min(seconds), 2), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def show(cases: list[dict[str, Any]], million: dict[str, dict[str, float]]) -> None:
    """Print a table of all packers: fill of the two cases of the seed's mixture, documents cut, a million documents."""
    print(
        f"{'packer':32} {'fill 16384':>10} {'fill 4096':>10} {'cut 16384':>10} {'cut 4096':>10} {'1M in s':>8} {'MiB':>5}"
    )
    for name in PACKERS:
        long, short = cases[0][name], cases[1][name]
        fills = f"{long['fill']:10.5f} {short['fill']:10.5f} {long['cut_documents']:10,} {short['cut_documents']:10,}"
        print(f"{name:32} {fills} {million[name]['seconds']:8.2f} {million[name]['mib']:5.0f}")


def main() -> int:
    """Measure all cases, print one line for each packer, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results_file = Path(__file__).with_name("results") / "packing.json"
    parser.add_argument("--result", type=Path, metavar="FILE", default=results_file, help="all figures, as JSON")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        million = dict(zip(PACKERS, pool.map(a_million, PACKERS, chunksize=1), strict=True))
    cases = [measured(*case) for case in [(78_385, 1010, 16_384), (78_385, 1010, 4_096), (78_385, 6000, 16_384)]]
    show(cases, million)
    options.result.write_text(json.dumps({"cases": cases, "a million documents": million}, indent=1) + "\n")
    long, short = cases[0], cases[1]
    worst = max(case["imbalance of 4 ranks a micro-step"] for case in (long, short))
    return judge(
        "packing",
        {
            "fill_16384": long[OURS]["fill"],
            "fill_4096": short[OURS]["fill"],
            "seed_fill_16384": long[SEED]["fill"],
            "seed_fill_4096": short[SEED]["fill"],
            "trl_fill_16384": long[TRL_BFD]["fill"],
            "trl_fill_4096": short[TRL_BFD]["fill"],
            "trl_wrapped_cut_16384": long[TRL_WRAPPED]["cut_documents"],
            "trl_wrapped_cut_4096": short[TRL_WRAPPED]["cut_documents"],
            "imbalance": worst,
            "million_seconds": million[OURS]["seconds"],
            "million_mib": million[OURS]["mib"],
        },
    )


if __name__ == "__main__":
    raise SystemExit(main())
