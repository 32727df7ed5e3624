"""Collectives of names of several lengths, many at once: in torch's own gloo groups every other try ends by SIGSEGV."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stagecoach_train.parallel.collectives import Group, _ops
from tests.distributed.ranks import run_ranks

SECONDS = 8.0


def mix_collectives(seconds: float) -> int:
    """Keep forty collectives on their way, gathers and sums in turn, and return how many there were."""
    world = dist.group.WORLD
    assert world is not None
    assert world._get_backend(torch.device("cpu")).options._threads == 1  # type: ignore[attr-defined]
    group = Group.of(world)
    part, ones = torch.ones(2, 2), torch.ones(3)
    end_seconds, count, over = time.monotonic() + seconds, 0, torch.zeros(1)
    while not over.item():
        gathers = [_ops.all_gather_into_tensor(part, group.size, group.name) for _ in range(20)]
        sums = [_ops.all_reduce(ones, "sum", group.name) for _ in range(20)]
        for gathered, total in zip(gathers, sums, strict=True):
            assert _ops.wait_tensor(gathered).sum() == 8
            assert _ops.wait_tensor(total).tolist() == [2.0, 2.0, 2.0]
        count += 40
        over = torch.tensor([float(time.monotonic() > end_seconds)])
        dist.all_reduce(over)
    return count


@pytest.mark.distributed
def test_the_heap_survives_gathers_among_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_PERTURB_", "165")  # freed memory is filled, so that what is written there shows sooner
    counts = run_ranks(2, mix_collectives, SECONDS, folder=tmp_path)
    assert counts[0] == counts[1] > 0
