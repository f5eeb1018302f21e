"""Arrange the ranks along the axes of pipeline, data and expert parallelism.

Ranks are numbered stage by stage. Neighboring ranks, which are mostly on one machine, share a set of experts, because
they communicate most. Data-parallel ranks come next. Pipeline stages communicate least and are furthest apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vl2.errors import UserError
from vl2.train.ranks import Ranks

_AXES = ("stage", "replica", "expert")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This process's groups of ranks, and the device meshes over which weights are sharded."""

    world: Ranks
    data: Ranks  # ranks with the same layers and different packs
    stage: Ranks  # ranks with the same packs and different layers
    experts: Ranks  # ranks of `data` with different experts; one rank without expert parallelism
    data_mesh: DeviceMesh  # for all weights except the experts'
    replica_mesh: DeviceMesh  # for the experts: ranks that hold parts of the same experts
    expert_mesh: DeviceMesh | None  # None if `experts` has one rank


def make_layout(world: Ranks, *, pipeline: int = 1, expert_parallel: int = 1) -> Layout:
    """Divide the ranks. All ranks must call this together. Raise UserError if the sizes do not divide their number."""
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
