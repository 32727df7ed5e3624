"""Gloo groups with one worker thread each, because torch's usual two corrupt the heap of a tensor-parallel CPU rank.

Each worker thread of a gloo group writes the name of the collective that it has finished into one string that both
share, without a lock (`ProcessGroupGloo::runLoop`, torch 2.11). Names of up to 15 characters lie inside the string;
that of the functional all-gather, ALLGATHER_COALESCED, lies on the heap. One thread freed it while the other copied
ALLREDUCE into it, and some allocations later the rank ended by SIGSEGV: one training in fifteen.
"""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from stagecoach.settings import Settings

BACKEND = "gloo_serial"
"""Name of the backend, wherever torch takes one: alone, or as in "cpu:gloo_serial,cuda:nccl"."""


def register_gloo() -> str:
    """Make the backend known to torch, once, and return its name.

    It is one of GPUs, too, as torch's own gloo is: `new_group` asks every group for a backend of the GPU to which the
    default group is bound.
    """
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _make_group, devices=["cpu", "cuda"])
    return BACKEND


def _make_group(store: Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # its stub calls it Options
    interfaces = Settings.from_environ().gloo_interfaces
    options._devices = [dist.ProcessGroupGloo.create_device(interface=interface) for interface in interfaces] or [
        dist.ProcessGroupGloo.create_default_device()
    ]
    options._threads = 1
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)
