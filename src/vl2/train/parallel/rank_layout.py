"""Which rank does what: ranks that hold different layers, the same layers for other packs, different experts.

Ranks are numbered stage by stage, so that neighbors, which are mostly on one machine, share experts; then come the
ranks that hold the same layers; and the stages of a pipeline, which tell one another least, lie furthest apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vl2.errors import UserError
from vl2.train.ranks import Ranks

_AXES = ("stage", "replica", "expert")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This process's place among all, and over which of them each weight is sharded."""

    world: Ranks
    data: Ranks  # those with the same layers: they have different packs
    stage: Ranks  # those with the same packs: they have different layers
    experts: Ranks  # those of `data` that have different experts; of size 1 where all have parts of all
    data_mesh: DeviceMesh  # every weight but the experts'
    replica_mesh: DeviceMesh  # each expert: the ranks that hold parts of the same ones
    expert_mesh: DeviceMesh | None  # None where `experts` has one rank


def make_layout(world: Ranks, *, pipeline: int = 1, expert_parallel: int = 1) -> Layout:
    """Divide all ranks. All of them call it together. UserError if they cannot be divided so."""
    for name, size in (("pipeline", pipeline), ("expert_parallel", expert_parallel)):
        if world.size % size:
            raise UserError(f"engine.{name} must divide the number of ranks: {size} does not divide {world.size}")
    if world.size % (pipeline * expert_parallel):
        raise UserError(
            f"engine.pipeline times engine.expert_parallel must divide the number of ranks: "
            f"{pipeline} x {expert_parallel} does not divide {world.size}"
        )
    kind, num_data = world.device.type, world.size // pipeline
    if pipeline == expert_parallel == 1:
        mesh = init_device_mesh(kind, (world.size,))
        alone = Ranks(rank=0, size=1, device=world.device)
        return Layout(
            world=world, data=world, stage=alone, experts=alone, data_mesh=mesh, replica_mesh=mesh, expert_mesh=None
        )
    sizes = (pipeline, num_data // expert_parallel, expert_parallel)
    mesh = init_device_mesh(kind, sizes, mesh_dim_names=_AXES)
    data = mesh["replica", "expert"]._flatten("data")
    has_own = expert_parallel > 1
    return Layout(
        world=world,
        data=_ranks(data, world),
        stage=_ranks(mesh["stage"], world),
        experts=_ranks(mesh["expert"], world),
        data_mesh=data,
        replica_mesh=mesh["replica"] if has_own else data,
        expert_mesh=mesh["expert"] if has_own else None,
    )


def _ranks(mesh: DeviceMesh, world: Ranks) -> Ranks:
    return Ranks(rank=mesh.get_local_rank(), size=mesh.size(), device=world.device, group=mesh.get_group())
