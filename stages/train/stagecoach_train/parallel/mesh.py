"""This rank's place in the grid of ranks, and one process group for each axis along which it shares work."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from stagecoach.parallel.topology import Coordinates, Topology
from stagecoach_train.parallel.collectives import Group


@dataclass(frozen=True, slots=True)
class Mesh:
    """Coordinates and groups of one rank; a group is None where the axis has one rank only.

    Attributes:
        topology: The whole grid.
        at: This rank's coordinates.
        tp: Ranks that share this rank's matrices.
        dp: Ranks with the same weights and other packs.
        pp: Ranks with the other layers.
        ends: First and last pipeline rank of this rank's pipeline; None on the ranks in between.
        world: Every rank.
    """

    topology: Topology
    at: Coordinates
    tp: dist.ProcessGroup | None
    dp: dist.ProcessGroup | None
    pp: dist.ProcessGroup | None
    ends: dist.ProcessGroup | None
    world: dist.ProcessGroup | None

    @classmethod
    def build(cls, topology: Topology) -> Mesh:
        """Make the groups; every rank calls this once, after `init_process_group` if there is more than one rank.

        Raises:
            ValueError: The process group has another number of ranks than the topology.
        """
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if world_size != topology.world_size:
            raise ValueError(
                f"the topology has {topology.world_size} ranks but {world_size} processes are running; start one a rank"
            )
        rank = dist.get_rank() if dist.is_initialized() else 0
        ends = [[line[0], line[-1]] for line in topology.groups("pp")] if topology.pipeline_parallel > 1 else []
        return cls(
            topology=topology,
            at=topology.coordinates(rank),
            tp=_group_with(rank, topology.groups("tp")),
            dp=_group_with(rank, topology.groups("dp")),
            pp=_group_with(rank, topology.groups("pp")),
            ends=_group_with(rank, ends),
            world=dist.group.WORLD if world_size > 1 else None,
        )

    @property
    def tp_constants(self) -> Group | None:
        """The tensor-parallel group as compiled code takes it."""
        return None if self.tp is None else Group.of(self.tp)

    def pp_neighbour(self, pp: int) -> int:
        """Return the global rank at another place of this rank's pipeline."""
        return self.topology.rank(dp=self.at.dp, pp=pp, tp=self.at.tp)


def _group_with(rank: int, members: list[list[int]]) -> dist.ProcessGroup | None:
    """Make every group, as all ranks must in the same order, and return the one that holds `rank`."""
    mine = None
    for ranks in members:
        if len(ranks) > 1:
            group = dist.new_group(ranks)
            if rank in ranks:
                mine = group
    return mine
