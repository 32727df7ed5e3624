"""Groups of CPU tensors beside a default group that is bound to a GPU, as in a training on several GPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from stagecoach_train.parallel.gloo import BACKEND, register_gloo


def test_a_group_is_made_beside_a_default_group_that_is_bound_to_a_gpu() -> None:
    """Torch asks each new group for its backend of the device to which the default group is bound."""
    gloo = register_gloo()
    dist.init_process_group(f"cpu:{gloo},cuda:{gloo}", store=HashStore(), rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        dist.group.WORLD.bound_device_id = torch.device("cuda", 0)
        group = dist.new_group(backend=gloo)
        total = torch.ones(2)
        dist.all_reduce(total, group=group)
        assert total.tolist() == [1.0, 1.0]
        assert dist.get_backend(group) == BACKEND
    finally:
        dist.destroy_process_group()
