"""Arrange the ranks along the axes of pipeline, data, expert and tensor parallelism.

Ranks are numbered stage by stage. Neighboring ranks, which are mostly on one machine, share the layers of tensor
parallelism and a set of experts, because they communicate most. Data-parallel ranks come next. Pipeline stages
communicate least and are furthest apart.

The ranks of a stage are divided twice: by packs and tensor parallelism, and by replicas of experts and experts. Ranks
of one tensor-parallel group run different tokens through the experts, so both divisions are independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vl2.errors import UserError
from vl2.train.ranks import Ranks

_AXES = ("stage", "replica", "expert")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This process's groups of ranks, and the device meshes over which weights are sharded."""

    world: Ranks
    data: Ranks  # ranks with the same layers, or parts of layers, and different packs
    stage: Ranks  # ranks with the same packs and different layers
    experts: Ranks  # ranks of a stage with different experts; one rank without expert parallelism
    tensor: Ranks  # ranks with the same packs and different parts of the same layers; one without tensor parallelism
    data_mesh: DeviceMesh  # all ranks of a stage, for all weights except the experts' and those of divided layers
    replica_mesh: DeviceMesh  # for the experts: ranks that hold parts of the same experts
    expert_mesh: DeviceMesh | None  # None if `experts` has one rank
    part_mesh: DeviceMesh | None = None  # for divided layers: ranks that hold the same part, those of `data`
    tensor_mesh: DeviceMesh | None = None  # None if `tensor` has one rank


def make_layout(world: Ranks, *, pipeline: int = 1, expert_parallel: int = 1, tensor_parallel: int = 1) -> Layout:
    """Divide the ranks. All ranks must call this together. Raise UserError if the sizes do not divide their number."""
    sizes = {"pipeline": pipeline, "expert_parallel": expert_parallel, "tensor_parallel": tensor_parallel}
    for name, size in sizes.items():
        if world.size % size:
            raise UserError(f"engine.{name} must divide the number of ranks: {size} does not divide {world.size}")
    for name in ("expert_parallel", "tensor_parallel"):
        if world.size % (pipeline * sizes[name]):
            raise UserError(
                f"engine.pipeline times engine.{name} must divide the number of ranks: "
                f"{pipeline} x {sizes[name]} does not divide {world.size}"
            )
    layout = _without_tensor(world, pipeline, expert_parallel)
    if tensor_parallel == 1:
        return layout
    mesh = init_device_mesh(
        world.device.type,
        (pipeline, world.size // (pipeline * tensor_parallel), tensor_parallel),
        mesh_dim_names=("stage", "part", "tensor"),
    )
    return replace(
        layout,
        data=_ranks(mesh["part"], world),
        tensor=_ranks(mesh["tensor"], world),
        part_mesh=mesh["part"],
        tensor_mesh=mesh["tensor"],
    )


def _without_tensor(world: Ranks, pipeline: int, expert_parallel: int) -> Layout:
    kind, num_data = world.device.type, world.size // pipeline
    if pipeline == expert_parallel == 1:
        mesh = init_device_mesh(kind, (world.size,))
        alone = Ranks(rank=0, size=1, device=world.device)
        return Layout(
            world=world,
            data=world,
            stage=alone,
            experts=alone,
            tensor=alone,
            data_mesh=mesh,
            replica_mesh=mesh,
            expert_mesh=None,
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
        tensor=Ranks(rank=0, size=1, device=world.device),
        data_mesh=data,
        replica_mesh=mesh["replica"] if has_own else data,
        expert_mesh=mesh["expert"] if has_own else None,
    )


def _ranks(mesh: DeviceMesh, world: Ranks) -> Ranks:
    return Ranks(rank=mesh.get_local_rank(), size=mesh.size(), device=world.device, group=mesh.get_group())
