"""Training speed on NVIDIA GPUs of one host against transformers + FSDP2, peer and ours in the same run on the same cards.

    python -m benchmarks.bench_gpu [--rows data_parallel,..] [--attention fa4]    two GPUs
    python -m benchmarks.bench_gpu --gpus 1 [..]                                  one; the whole model needs 105 GiB
    python -m benchmarks.bench_gpu --gpus 4 [..]                                  four; also a TP 4 checkpoint resumed as FSDP 4
    .. --small                                                                    a toy on as many CPU processes; judges nothing

Writes ``results/gpu-<card>-<row>-<attention>.json``, closes with one line of ``key=value`` figures, and exits 1 below a
floor of ``floors.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.gpu_workload import PEAK_FLOPS

HERE = Path(__file__).parent
STUDY_PEER_MFU = 0.411
"""What the peer reached when it was first measured (H100 whose 8192^3 product ran at 774 TFLOP/s)."""
STUDY_CEILING_FLOPS = 774e12
PEER_TOLERANCE = 0.06

_WORK = "--same-lengths --accumulate 4 --recompute selective --steps 5"
ROWS_OF_ONE = {
    "one_gpu": "--layers 8 --pack-tokens 16384 --recompute none --same-lengths --steps 8 --layouts 50",
    "one_gpu_accumulated": f"--layers 8 --pack-tokens 8192 {_WORK}",
    "one_gpu_fp8": "--layers 8 --pack-tokens 16384 --recompute none --same-lengths --steps 8 --fp8",
    "whole_model": f"--pack-tokens 8192 {_WORK}",
    "whole_model_fp8": f"--pack-tokens 8192 {_WORK} --fp8",
}
ROWS_OF_TWO = {
    "data_parallel": f"--dp 2 --pack-tokens 8192 {_WORK}",
    "tensor_parallel": f"--tp 2 --async-tp --pack-tokens 16384 {_WORK}",
    "forty_gb": f"--tp 2 --async-tp --layers 16 --memory-cap-gb 38 --regather --pack-tokens 16384 {_WORK}",
}
ROWS_OF_FOUR = {
    "tp4": f"--tp 4 --async-tp --pack-tokens 16384 {_WORK}",
    "fsdp4": f"--dp 4 --fsdp --pack-tokens 16384 {_WORK}",
    "tp4_forty_gb": f"--tp 4 --async-tp --memory-cap-gb 40 --regather --pack-tokens 16384 {_WORK}",
    "tp2_fsdp2": f"--tp 2 --dp 2 --fsdp --pack-tokens 16384 {_WORK}",
    "pp4": f"--pp 4 --pack-tokens 16384 {_WORK} --accumulate 16",
    "tp4_to_fsdp4": "--layers 8 --pack-tokens 16384",
}
ROWS = {1: ROWS_OF_ONE, 2: ROWS_OF_TWO, 4: ROWS_OF_FOUR}
"""Number of GPUs -> row -> arguments of ``train_step.py`` (of ``layout_change.py`` for LAYOUT_CHANGE)."""
AGAINST_PEER = ("one_gpu_accumulated", "data_parallel", "tensor_parallel", "tp4", "fsdp4")
LAYOUT_CHANGE = {"tp4_to_fsdp4": ("--tp 4 --accumulate 4", "--dp 4 --fsdp --accumulate 1")}
LARGEST_LOSS_CHANGE = 2e-3
"""Relative difference between the losses of one step in two layouts, bf16 products."""
SMALL = "--small --layers 8 --pack-tokens 256 --dtype fp32 --moments fp32 --steps 2 --attention auto"
STARTED_TWICE = ("one_gpu_accumulated", "data_parallel")
"""Rows whose first step is also timed with the compile cache that the first run left."""
FIGURES = (
    "mfu",
    "tokens_per_second_per_gpu",
    "tokens_per_second",
    "peak_gib",
    "peak_gb",
    "imbalance",
    "exposed_communication_milliseconds",
    "plan_off_by",
    "cold_start_seconds",
    "cached_start_seconds",
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR")


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, choices=tuple(ROWS))
    parser.add_argument("--rows", help="which rows; all of that number of GPUs if left out")
    parser.add_argument("--attention", default="auto", choices=("auto", "varlen", "fa4"))
    parser.add_argument("--small", action="store_true")
    flags = parser.parse_args()
    rows = flags.rows.split(",") if flags.rows else list(ROWS[flags.gpus])
    backend = "fa4" if flags.attention == "fa4" else "stock"
    peer, failures = _peer(flags.gpus, small=flags.small) if set(rows) & set(AGAINST_PEER) else (None, [])
    section = tomllib.loads((HERE / "floors.toml").read_text())["gpu4" if flags.gpus == 4 else "gpu"]
    figures: dict[str, Any] = {}
    for row in rows:
        arguments = [
            *ROWS[flags.gpus][row].split(),
            *(SMALL.split() if flags.small else ["--attention", flags.attention]),
        ]
        try:
            if row in LAYOUT_CHANGE:
                figures[f"{row}_loss_change"] = _layout_change(row, arguments, flags.gpus)
            else:
                found = _measured(row, arguments, flags.gpus, peer)
                figures |= found.pop("figures")
                failures += found.pop("failures")
                if not (flags.small or (row in AGAINST_PEER and peer is None)):
                    result_file(row, backend, found["ours"]["device"]).write_text(
                        json.dumps({**found, "attention": backend}, indent=1) + "\n"
                    )
        except NoResultError as error:
            failures.append(f"{row}: {error}")
            continue
        if not flags.small:
            failures += _below(section[backend], row, figures)
    for failure in failures:
        print(f"not good enough: {failure}")
    print(" ".join(f"{name}={value}" for name, value in figures.items()))
    return 1 if failures else 0


def _peer(num_gpus: int, *, small: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the peer's results, or None and why nothing is compared: rows against it are then printed, not written."""
    size = ["--small", "--layers", "4"] if small else ["--layers", "8"] if num_gpus == 1 else []
    try:
        peer = torchrun("gpu_peer", ["--accumulation", "4", *size], "RESULT ", num_gpus=num_gpus)
    except NoResultError as error:
        return None, [str(error)]
    void = _why_void(peer) if num_gpus == 2 and not small else None
    return (peer, []) if void is None else (None, [void])


def _measured(row: str, arguments: list[str], num_gpus: int, peer: dict[str, Any] | None) -> dict[str, Any]:
    """Run one row with an empty compile cache; returns its results, its figures, and what it did that it must not."""
    peer = peer if row in AGAINST_PEER else None
    with tempfile.TemporaryDirectory(prefix="compiled-") as cache:
        ours = torchrun("train_step", arguments, "{", num_gpus=num_gpus, cache=cache)
        if row in STARTED_TWICE:
            again = torchrun("train_step", [*arguments, "--steps", "1"], "{", num_gpus=num_gpus, cache=cache)
            ours["cached_start_seconds"] = again["cold_start_seconds"]
    figures = {f"{row}_{name}": ours[name] for name in FIGURES if name in ours}
    if peer is not None:
        ratio = ours["tokens_per_second_per_gpu"] / peer["tokens_per_second_per_gpu"]
        figures[f"{row}_ratio_to_peer"] = round(ratio, 3)
    compiled = ours["graphs_after_step_2"] + (ours["layouts"] or {"graphs": 0})["graphs"]
    failures = [f"{row} compiled {compiled} graphs after its second step"] if compiled else []
    return {"ours": ours, "peer": peer, "figures": figures, "failures": failures}


def _layout_change(row: str, arguments: list[str], num_gpus: int) -> float:
    """Save a checkpoint in one layout, resume it in another; returns the largest relative difference of their losses."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        saved, resumed = (
            torchrun("layout_change", [*arguments, *layout.split(), "--store", folder], "{", num_gpus=num_gpus)
            for layout in LAYOUT_CHANGE[row]
        )
    if (saved["resumed"], resumed["resumed"]) != (False, True):
        raise NoResultError("the second layout did not find the checkpoint of the first")
    change: float = max(abs(theirs / ours - 1) for ours, theirs in zip(saved["losses"], resumed["losses"], strict=True))
    if change > LARGEST_LOSS_CHANGE:
        raise NoResultError(f"losses {saved['losses']} became {resumed['losses']}")
    return change


def result_file(row: str, backend: str, device: str) -> Path:
    """Name the results after the card, so that those of one card never replace another's."""
    card = next((name.lower() for name in PEAK_FLOPS if name in device), "unknown")
    return HERE / "results" / f"gpu-{card}-{row}-{backend}.json"


def _below(floors: dict[str, dict[str, float]], row: str, figures: dict[str, Any]) -> list[str]:
    """Say which of a row's figures are below their floors, above their caps, or missing."""
    judged = {f"{row}_{name}" for name in (*FIGURES, "ratio_to_peer")}
    least, most = ({name: floors[end][name] for name in floors[end] if name in judged} for end in ("least", "most"))
    return [
        *(f"{name} was not measured" for name in {**least, **most} if figures.get(name) is None),
        *(f"{name} {figures[name]} < {floor}" for name, floor in least.items() if (figures.get(name) or floor) < floor),
        *(f"{name} {figures[name]} > {cap}" for name, cap in most.items() if (figures.get(name) or cap) > cap),
    ]


class NoResultError(Exception):
    """A script ended without its figures."""


def torchrun(
    script: str, arguments: list[str], marker: str, *, num_gpus: int = 2, cache: str | None = None
) -> dict[str, Any]:
    """Run a script on so many ranks, with a compile cache of its own where one is given; returns what rank 0 prints."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
    environment = dict(os.environ)
    if cache is not None:
        environment |= {name: os.path.join(cache, name.lower()) for name in CACHES}
    done = subprocess.run(
        [*launcher, "-m", f"benchmarks.{script}", *arguments],
        capture_output=True,
        text=True,
        timeout=None if "--small" in arguments else 400,  # a rehearsal may run on a busy machine
        env=environment,
        cwd=HERE.parent,
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith(marker)]
    if not lines:
        raise NoResultError(f"{script} gave no result (exit code {done.returncode}):\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    shown = ("tokens_per_second_per_gpu", "mfu", "losses")
    print(f"{script} {' '.join(arguments)}:", *(f"{name} {found[name]}" for name in shown if name in found), flush=True)
    return found


def _why_void(peer: dict[str, Any]) -> str | None:
    """Say why nothing is compared with a peer that is off its known speed, relative to what this card's product does."""
    expected = STUDY_PEER_MFU * peer["matmul_ceiling_flops"] / STUDY_CEILING_FLOPS
    if abs(peer["mfu"] / expected - 1) <= PEER_TOLERANCE:
        return None
    return f"the comparison is void: the peer's MFU is {peer['mfu']:.3f}, expected {expected:.3f} within 6 %"


if __name__ == "__main__":
    raise SystemExit(main())
