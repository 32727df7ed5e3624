"""Where one training step's time goes on a GPU: kernel time by kind, communication that nothing hides, and idle time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

KINDS = {
    "communication": ("nccl", "memcpy ptop", "memcpy peer", "symm", "barrier", "signal"),
    "attention": ("flash", "fmha", "attn"),
    "matrix_products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk"),
    "optimizer": ("_adamw", "multi_tensor_apply", "lpnorm"),
    "loss": ("_row_statistics", "_row_gradient"),
    "exchange_additions": ("_add_parts",),
    "copies": ("memcpy", "memset"),
    "elementwise": ("triton_", "_swiglu_gradient", "elementwise", "reduce", "index", "embedding", "cat"),
}
"""Kind -> parts of kernel names in lower case; the first kind that has one counts. The rest is "other"."""

Interval = tuple[float, float]


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    lower = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), "other")


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union as disjoint intervals in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def breakdown(kernels: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Sum up kernels (name, start, end; microseconds) to milliseconds by kind.

    Kinds overlap where streams do, so that they can add up to more than ``wall``. ``computing`` is the time in
    which anything but communication runs, ``exposed_communication`` that in which only communication does, ``idle`` that in
    which nothing does.
    """
    spans: dict[str, list[Interval]] = {}
    for name, start, end in kernels:
        spans.setdefault(kind_of(name), []).append((start, end))
    everything = merged(span for kind in spans.values() for span in kind)
    computing = merged(span for kind, found in spans.items() if kind != "communication" for span in found)
    if not everything:
        return {}
    wall = everything[-1][1] - everything[0][0]
    figures = {kind: length(found) for kind, found in spans.items()}
    figures |= {
        "computing": length(computing),
        "exposed_communication": length(everything) - length(computing),
        "idle": wall - length(everything),
        "wall": wall,
    }
    return {name: round(value / 1e3, 2) for name, value in figures.items()}


def profiled(step: Callable[[], Any]) -> dict[str, float]:
    """Run one step under the profiler and return its `breakdown`."""
    import torch
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return breakdown(
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
