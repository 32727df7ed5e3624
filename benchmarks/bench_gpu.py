"""Training speed on two NVIDIA GPUs (and on one) against transformers + FSDP2, peer and ours in the same run on the same cards.

    python benchmarks/bench_gpu.py [--rows data_parallel,..] [--attention fa4]

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

from gpu_workload import PEAK_FLOPS

HERE = Path(__file__).parent
STUDY_PEER_MFU = 0.411
"""What the peer reached when it was first measured (H100 whose 8192^3 product ran at 774 TFLOP/s)."""
STUDY_CEILING_FLOPS = 774e12
PEER_TOLERANCE = 0.06

_WORK = "--same-lengths --accumulate 4 --recompute selective --steps 5"
ROWS = {
    "data_parallel": f"--dp 2 --pack-tokens 8192 {_WORK}",
    "tensor_parallel": f"--tp 2 --async-tp --pack-tokens 16384 {_WORK}",
    "forty_gb": f"--tp 2 --async-tp --layers 16 --memory-cap-gb 38 --regather --pack-tokens 16384 {_WORK}",
    "one_gpu": "--layers 8 --pack-tokens 16384 --recompute none --same-lengths --steps 8 --layouts 50",
}
AGAINST_PEER = ("data_parallel", "tensor_parallel")
STARTED_TWICE = "data_parallel"
"""The row whose first step is also timed with the compile cache that the first run left."""
FIGURES = (
    "mfu",
    "tokens_per_second_per_gpu",
    "peak_gib",
    "plan_off_by",
    "cold_start_seconds",
    "cached_start_seconds",
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR")


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--attention", default="auto", choices=("auto", "varlen", "fa4"))
    flags = parser.parse_args()
    rows = flags.rows.split(",")
    backend = "fa4" if flags.attention == "fa4" else "stock"
    peer = None
    if set(rows) & set(AGAINST_PEER):
        peer = _torchrun("gpu_peer.py", ["--accumulation", "4"], "RESULT ")
        _check_peer(peer)
    floors = tomllib.loads((HERE / "floors.toml").read_text())["gpu"][backend]
    figures: dict[str, Any] = {}
    failures: list[str] = []
    for row in rows:
        arguments = [*ROWS[row].split(), "--attention", flags.attention]
        with tempfile.TemporaryDirectory(prefix="compiled-") as cache:
            try:
                ours = _torchrun("train_step.py", arguments, "{", num_gpus=1 if row == "one_gpu" else 2, cache=cache)
                if row == STARTED_TWICE:
                    again = _torchrun("train_step.py", [*arguments, "--steps", "1"], "{", cache=cache)
                    ours["cached_start_seconds"] = again["cold_start_seconds"]
            except NoResultError as error:
                failures.append(f"{row}: {error}")
                continue
        result = {"ours": ours, "peer": peer if row in AGAINST_PEER else None, "attention": backend}
        _result_file(row, backend, ours["device"]).write_text(json.dumps(result, indent=1) + "\n")
        for name in FIGURES:
            if name in ours:
                figures[f"{row}_{name}"] = ours[name]
        if peer is not None and row in AGAINST_PEER:
            ratio = ours["tokens_per_second_per_gpu"] / peer["tokens_per_second_per_gpu"]
            figures[f"{row}_ratio_to_peer"] = round(ratio, 3)
        compiled = ours["graphs_after_step_2"] + (ours["layouts"] or {"graphs": 0})["graphs"]
        if compiled:
            failures.append(f"{row} compiled {compiled} graphs after its second step")
        failures += _below(floors, {name: value for name, value in figures.items() if name.startswith(row)})
    for failure in failures:
        print(f"not good enough: {failure}")
    print(" ".join(f"{name}={value}" for name, value in figures.items()))
    return 1 if failures else 0


def _result_file(row: str, backend: str, device: str) -> Path:
    """Name the results after the card, so that those of one card never replace another's."""
    card = next((name.lower() for name in PEAK_FLOPS if name in device), "unknown")
    return HERE / "results" / f"gpu-{card}-{row}-{backend}.json"


def _below(floors: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """Say which of a row's figures are below their floors, or above their caps."""
    least, most = floors["least"], floors["most"]
    return [
        *(f"{name} {figures[name]} < {floor}" for name, floor in least.items() if figures.get(name, floor) < floor),
        *(f"{name} {figures[name]} > {cap}" for name, cap in most.items() if figures.get(name, cap) > cap),
    ]


class NoResultError(Exception):
    """A script ended without its figures."""


def _torchrun(
    script: str, arguments: list[str], marker: str, *, num_gpus: int = 2, cache: str | None = None
) -> dict[str, Any]:
    """Run a script on so many ranks, with a compile cache of its own where one is given; returns what rank 0 prints."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
    environment = dict(os.environ)
    if cache is not None:
        environment |= {name: os.path.join(cache, name.lower()) for name in CACHES}
    done = subprocess.run(
        [*launcher, str(HERE / script), *arguments], capture_output=True, text=True, timeout=400, env=environment
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith(marker)]
    if not lines:
        raise NoResultError(f"{script} gave no result (exit code {done.returncode}):\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    print(
        f"{script} {' '.join(arguments)}: {found['tokens_per_second_per_gpu']:.0f} tokens/s/GPU, MFU {found['mfu']:.1%}",
        flush=True,
    )
    return found


def _check_peer(peer: dict[str, Any]) -> None:
    """Refuse to compare with a peer that is off its known speed, relative to what this card's matrix product does."""
    expected = STUDY_PEER_MFU * peer["matmul_ceiling_flops"] / STUDY_CEILING_FLOPS
    if abs(peer["mfu"] / expected - 1) > PEER_TOLERANCE:
        sys.exit(f"the comparison is void: the peer's MFU is {peer['mfu']:.3f}, expected {expected:.3f} within 6 %")


if __name__ == "__main__":
    raise SystemExit(main())
