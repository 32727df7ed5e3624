"""Training speed on two NVIDIA GPUs (and on one) against transformers + FSDP2, peer and ours in the same run on the same cards.

    python benchmarks/bench_gpu.py [--rows data_parallel,..] [--attention fa4]

Writes ``results/gpu-<row>.json``, closes with one line of ``key=value`` figures, and exits 1 below a floor of ``floors.toml``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

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


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--attention", default="auto", choices=("auto", "varlen", "fa4"))
    flags = parser.parse_args()
    rows = flags.rows.split(",")
    backend = "fa4" if flags.attention == "fa4" else "stock"
    peer = _torchrun("gpu_peer.py", ["--accumulation", "4"], "RESULT ") if set(rows) & set(AGAINST_PEER) else None
    if peer is not None:
        _check_peer(peer)
    floors = tomllib.loads((HERE / "floors.toml").read_text())["gpu"][backend]
    figures, failures = {}, []
    for row in rows:
        arguments = [*ROWS[row].split(), "--attention", flags.attention]
        ours = _torchrun("train_step.py", arguments, "{", num_gpus=1 if row == "one_gpu" else 2)
        result = {"ours": ours, "peer": peer if row in AGAINST_PEER else None, "attention": backend}
        (HERE / "results" / f"gpu-{row}-{backend}.json").write_text(json.dumps(result, indent=1) + "\n")
        figures[f"{row}_mfu"] = ours["mfu"]
        figures[f"{row}_tokens_per_second_per_gpu"] = ours["tokens_per_second_per_gpu"]
        figures[f"{row}_peak_gib"] = ours["peak_gib"]
        if peer is not None and row in AGAINST_PEER:
            figures[f"{row}_ratio_to_peer"] = round(
                ours["tokens_per_second_per_gpu"] / peer["tokens_per_second_per_gpu"], 3
            )
        compiled = ours["graphs_after_step_2"] + (ours["layouts"] or {"graphs": 0})["graphs"]
        if compiled:
            failures.append(f"{row} compiled {compiled} graphs after its second step")
        failures += [
            f"{name} {figures[name]} < {floor}"
            for name, floor in floors.items()
            if name.startswith(row) and figures[name] < floor
        ]
    for failure in failures:
        print(f"not good enough: {failure}")
    print(" ".join(f"{name}={value}" for name, value in figures.items()))
    return 1 if failures else 0


def _torchrun(script: str, arguments: list[str], marker: str, *, num_gpus: int = 2) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num_gpus),
        str(HERE / script),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith(marker)]
    if not lines:
        sys.exit(f"{script} gave no result (exit code {done.returncode}):\n{done.stderr[-3000:]}")
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
