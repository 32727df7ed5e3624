"""Training speed against each public stack at its best on the same cards, with and without recompute.

    python -m benchmarks.bench_peers [--gpus 2] [--attention fa4]     the whole model, data parallel
    python -m benchmarks.bench_peers --gpus 1 [..]                    8 of 32 layers

`bench_gpu.py` compares on what fits a card of 80 GB, where the peers must compute everything again; a larger card lets
them keep activations, whole weights and whole gradients. Every stack runs with and without, with flash-attn-4 where ours
has it, and ours is held to the fastest of all. What a stack cannot run is a row less, and said. Writes
``results/gpu-<card>-peers-<gpus>-<attention>.json``, closes with one line of figures, exits 1 below a floor of ``floors.toml``.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from typing import Any

from benchmarks.bench_gpu import HERE, SMALL, NoResultError, result_file, torchrun

PEERS = (
    "--stack transformers --recompute full --pack-tokens 16384",
    "--stack transformers --recompute none --pack-tokens 8192 --resident",
    "--stack liger --recompute none --pack-tokens 8192 --resident",
    "--stack torchtitan --recompute selective --pack-tokens 8192",
    "--stack torchtitan --recompute none --pack-tokens 8192 --resident",
)
PEERS_WITH_FA4 = (
    "--stack transformers --recompute none --pack-tokens 8192 --resident --attention fa4",
    "--stack torchtitan --recompute none --pack-tokens 8192 --resident --attention fa4",
)
OURS = ("--recompute selective", "--recompute none", "--recompute none --moments fp32")
_LAYERS = {1: 8, 2: 32}


def main() -> int:
    """Measure all, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, choices=tuple(_LAYERS))
    parser.add_argument("--attention", default="auto", choices=("auto", "varlen", "fa4"))
    parser.add_argument("--small", action="store_true", help="a toy on CPU processes; judges nothing")
    flags = parser.parse_args()
    layers = "--layers 8 --small" if flags.small else f"--layers {_LAYERS[flags.gpus]}"
    size = SMALL if flags.small else f"{layers} --pack-tokens 8192 --attention {flags.attention}"
    common = f"--dp {flags.gpus} --same-lengths --accumulate 4 {size}"
    stacks = [*PEERS, *(PEERS_WITH_FA4 if flags.attention == "fa4" else ())]
    stacks = [peer for peer in stacks if "liger" not in peer or not flags.small]  # Liger's kernels need a GPU
    failures, left_out = list[str](), dict[str, str]()
    peers, ours = list[dict[str, Any]](), list[dict[str, Any]]()
    for script, marker, options, found in (
        *(("gpu_peer", "RESULT ", f"{peer} {layers}", peers) for peer in stacks),
        *(("train_step", "{", f"{common} {options}", ours) for options in OURS),
    ):
        try:
            found.append(torchrun(script, options.split(), marker, num_gpus=flags.gpus))
        except NoResultError as error:
            if found is ours:
                failures.append(str(error))
            else:
                left_out[options] = _cause(str(error))
                print(f"left out: {options}: {error}", flush=True)
    if peers and ours:
        figures = _figures(peers, ours)
        if not flags.small:
            backend = "fa4" if flags.attention == "fa4" else "stock"
            path = result_file(f"peers-{flags.gpus}", backend, ours[0]["device"])
            path.write_text(
                json.dumps({"peers": peers, "left_out": left_out, "ours": ours, "attention": backend}, indent=1) + "\n"
            )
            floor = tomllib.loads((HERE / "floors.toml").read_text())["peers"][backend]["ratio_to_fastest_peer"]
            if figures["ratio_to_fastest_peer"] < floor:
                failures.append(f"ratio_to_fastest_peer {figures['ratio_to_fastest_peer']} < {floor}")
        print(" ".join(f"{name}={value}" for name, value in figures.items()))
    for failure in failures:
        print(f"not good enough: {failure}")
    return 1 if failures else 0


def _cause(log: str) -> str:
    """Return the last line of a log that names an error, torchrun's own aside."""
    named = [line for line in log.splitlines() if "Error: " in line and "ChildFailedError" not in line]
    return named[-1] if named else log[-200:]


def _figures(peers: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the fastest of theirs with the fastest of ours."""
    peer, own = (max(rows, key=lambda row: float(row["tokens_per_second_per_gpu"])) for rows in (peers, ours))
    theirs, mine = peer["tokens_per_second_per_gpu"], own["tokens_per_second_per_gpu"]
    return {
        "fastest_peer": f"{peer['stack'].split()[0]}-{peer['flags']['recompute']}-{peer['flags']['attention']}",
        "fastest_peer_tokens_per_second_per_gpu": round(theirs),
        "tokens_per_second_per_gpu": round(mine),
        "recompute": own["arguments"]["recompute"],
        "moments": own["arguments"]["moments"],
        "ratio_to_fastest_peer": round(mine / theirs, 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
