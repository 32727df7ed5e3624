"""Draw the training speeds of ``results/gpu-*.json`` as one SVG, so that the plot of README.md always is what was measured.

    python -m benchmarks.plot

Writes ``results/gpu.svg``.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {
    "data_parallel-fa4": "data parallel, 8k packs, flash-attn-4",
    "data_parallel-stock": "data parallel, 8k packs, stock torch",
    "tensor_parallel-fa4": "TP 2 asynchronous, 16k packs, flash-attn-4",
    "tensor_parallel-stock": "TP 2 asynchronous, 16k packs, stock torch",
    "forty_gb-fa4": "TP 2 x 16 layers below 38 GB, flash-attn-4",
    "one_gpu-fa4": "one GPU, 8 layers, flash-attn-4",
    "one_gpu-stock": "one GPU, 8 layers, stock torch",
    "whole_model-fa4": "one GPU, all 32 layers, flash-attn-4",
    "whole_model_fp8-fa4": "the same, products in 8 bits (of the bf16 peak)",
}
PEER = "peer: transformers + FSDP2"
WIDTH, LEFT, BAR, GAP = 760, 330, 22, 10


def rows() -> list[tuple[str, float, bool]]:
    """Return (what, MFU, is it ours) of the peer and of each result file, in the order of ``ROWS``."""
    results = {row: json.loads((HERE / "results" / f"gpu-h200-{row}.json").read_text()) for row in ROWS}
    peer = results["data_parallel-fa4"]["peer"]["mfu"]
    return [(PEER, peer, False), *((what, results[row]["ours"]["mfu"], True) for row, what in ROWS.items())]


def drawn(bars: list[tuple[str, float, bool]]) -> str:
    """Return the bars as an SVG that is readable on light and on dark pages."""
    height = len(bars) * (BAR + GAP) + 2 * GAP
    scale = (WIDTH - LEFT - 80) / max(mfu for _, mfu, _ in bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        "<title>Model FLOPs utilisation of training steps, two H200 where not said otherwise</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (what, mfu, ours) in enumerate(bars):
        top = GAP + number * (BAR + GAP)
        middle = top + BAR / 2 + 5
        parts += [
            f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end" fill="#222222">{escape(what)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{mfu * scale:.1f}" height="{BAR}" fill="{"#2563ab" if ours else "#999999"}"/>',
            f'<text x="{LEFT + mfu * scale + 8:.1f}" y="{middle}" fill="#222222">{mfu:.1%}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (HERE / "results" / "gpu.svg").write_text(drawn(rows()))
