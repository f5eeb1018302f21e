"""Place the weights on the ranks: replicated on every rank, or sharded, so that each rank holds a part.

"replicated": every rank has the model in the compute type and runs its own packs independently. Gradients are summed
once per optimizer step, in a few flat buckets. Ranks need not run equally many packs.

"sharded" (FSDP2): every rank holds a part of each weight. A vision block or decoder layer is gathered in the compute
type when it runs; its gradients are reduce-scattered in float32 in every backward pass. All ranks must therefore run
equally often and through all blocks: a rank without images or packs runs blank ones (see `vl2.train.blank`). Trained
weights are held in float32, or in bfloat16 with the bfloat16 optimizer; weights frozen beforehand in the compute type.

In both modes the router's weights and the expert bias stay float32. Gradients are summed, not averaged, because the
loss has already been divided by the count over all ranks. Sharded weights are DTensors, each split along one axis per
mesh; the rest of the package accesses them through `local`, `origin` and `full_tensor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vl2.config import LanguageConfig
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.language import DecoderLayer
from vl2.model.moe import Experts, Router
from vl2.model.vision import Block, CarriedAttentionPool
from vl2.train.blank import run_pack
from vl2.train.parallel.expert_parallel import run_over_ranks
from vl2.train.parallel.rank_layout import Layout, make_layout
from vl2.train.parallel.tensor_parallel import divide_encoder, divide_layers, is_divided
from vl2.train.ranks import Ranks

Mode = Literal["replicated", "sharded"]
RUN_PACK = "run_pack"  # the method of a sharded model that is `vl2.train.blank.run_pack`

BUCKET_ELEMENTS = 1 << 24  # elements summed in one collective: 64 MiB of float32


def shard(
    model: VL2,
    mode: Mode,
    ranks: Ranks,
    compute_dtype: torch.dtype,
    *,
    layout: Layout | None = None,
    held: torch.dtype = torch.float32,
) -> VL2:
    """Place the model on the ranks' devices in place, and return it. Its parameters may be new objects.

    All ranks get the first rank's weights; the other ranks may pass a model on the meta device. Freeze parameters
    before, and create the optimizer after this call. A single rank is always "replicated". `layout` divides experts and
    layers among sharded ranks; by default nothing is divided. `held` is the type in which sharded trained
    weights are held. Raise UserError for invalid settings.
    """
    if mode not in get_args(Mode):
        raise UserError(f"the weights must be {' or '.join(get_args(Mode))}, got {mode!r}")
    if mode == "replicated" or ranks.size == 1:
        _replicate(model, ranks, compute_dtype)
    else:
        _shard_model(model, layout or make_layout(ranks), compute_dtype, held)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model is sharded, so that all ranks must run it together."""
    return any(isinstance(module, FSDPModule) for module in (model, *model.children()))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, which shares its memory; return other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def origin(tensor: Tensor) -> tuple[int, ...]:
    """Return the index in the whole tensor at which this rank's part begins."""
    place = [0] * tensor.ndim
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        for axis, placement in enumerate(tensor.placements):
            assert isinstance(placement, Shard), f"placed as {placement}"
            assert not place[placement.dim], "sharded twice along one axis"
            size = tensor.shape[placement.dim]
            share = -(-size // mesh.size(axis))  # the last ranks may have fewer elements, or none
            place[placement.dim] = min(mesh.get_local_rank(axis) * share, size)
    return tuple(place)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather and return a sharded tensor; return other tensors unchanged. All ranks must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the full tensor of every parameter and buffer. All ranks must iterate together."""
    for name, tensor in _tensors(model).items():
        yield name, full_tensor(tensor)


@torch.no_grad()
def sum_gradients_(gradients: Iterable[Tensor], ranks: Ranks) -> None:
    """Sum the gradients over all ranks in place, in float32. Sharded ones are already summed and are skipped."""
    if ranks.size == 1:
        return
    bucket: list[Tensor] = []
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            continue
        if bucket and sum(t.numel() for t in bucket) + gradient.numel() > BUCKET_ELEMENTS:
            _sum_bucket_(bucket, ranks)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_bucket_(bucket, ranks)


def _sum_bucket_(bucket: list[Tensor], ranks: Ranks) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous() and bucket[0].dtype == torch.float32:
        ranks.sum_(bucket[0])
        return
    flat = ranks.sum_(torch.cat([gradient.flatten() for gradient in bucket]).float())
    for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(total.view_as(gradient))


@torch.no_grad()
def _replicate(model: VL2, ranks: Ranks, compute_dtype: torch.dtype) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            dtype = torch.float32 if isinstance(module, Router) else _cast(parameter, compute_dtype)
            copy = _first_copy(parameter.detach(), dtype, ranks)
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(copy, requires_grad=parameter.requires_grad))
            else:
                parameter.data = copy
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _first_copy(buffer, buffer.dtype, ranks))


@torch.no_grad()
def _shard_model(model: VL2, layout: Layout, compute_dtype: torch.dtype, held: torch.dtype) -> None:
    ranks = layout.world
    source: Mapping[str, Tensor] = {name: t.detach() for name, t in _tensors(model).items()} if ranks.is_first else {}
    # Continue on the meta device, so that only the first rank ever needs memory for a whole model.
    model.to("meta")
    cast_held(model, compute_dtype, held)
    shard_module(model, layout, compute_dtype)
    if layout.tensor.size > 1:
        divide_encoder(model, layout.tensor)
    setattr(model, RUN_PACK, MethodType(run_pack, model))
    # Each of these methods gathers and frees the weights, so none of them may call another.
    for method in ("states", "encode_tiles", RUN_PACK):
        register_fsdp_forward_method(model, method)
    model.to_empty(device=ranks.device)
    for name, tensor in _tensors(model).items():
        fill_from_first(name, tensor, source, ranks)
    gather_once(model)


@torch.no_grad()
def cast_held(model: nn.Module, compute_dtype: torch.dtype, held: torch.dtype) -> None:
    """Cast every weight to the type in which its shards are held: `held` if it is trained.

    Routers compute in float32 in any case (see `shard_module`), also from weights that are held in bfloat16.
    """
    for module in model.modules():
        frozen = torch.float32 if isinstance(module, Router) else compute_dtype
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(held if parameter.requires_grad else _cast(parameter, frozen))


def shard_module(model: nn.Module, layout: Layout, compute_dtype: torch.dtype) -> None:
    """Shard the weights of a model, or of some of its layers, on the meta device."""
    has_own_experts = layout.expert_mesh is not None
    if layout.tensor_mesh is not None:
        divide_layers(model, layout.tensor_mesh, layout.tensor)
    if layout.expert_mesh is not None:
        for module in model.modules():
            if isinstance(module, Experts):
                _divide_experts(module, layout.expert_mesh)
                run_over_ranks(module, layout.experts, local)
    for group in _groups(model, has_own_experts=has_own_experts):
        dtype = torch.float32 if isinstance(group, Router) else compute_dtype
        mesh = layout.replica_mesh if isinstance(group, Experts) else layout.data_mesh
        if is_divided(group):
            assert layout.part_mesh is not None
            mesh = layout.part_mesh
        # In a pipeline a layer runs once per micro-batch, so gathering it each time would cost more than the memory.
        _fully_shard(group, mesh, dtype, stays_gathered=layout.stage.size > 1)


def gather_once(model: nn.Module) -> None:
    """Gather and free every weight once, before the optimizer is created.

    If the rows of a weight cannot be divided evenly, its first gathering moves the local parts to padded memory. An
    optimizer that was created before would still refer to the old memory.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def reshard(model: nn.Module) -> None:
    """Free gathered weights, so that the next pass gathers the shards that the optimizer has updated.

    FSDP does this itself after a backward pass that reaches all weights of a group, but in a pipeline's segment some
    weights may be frozen.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _divide_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Divide the experts among the ranks of the mesh. The weights are on the meta device."""
    for name, parameter in list(experts.named_parameters(recurse=False)):
        num_experts = len(parameter)
        if num_experts % mesh.size():
            raise UserError(
                f"engine.expert_parallel must divide the number of experts: {mesh.size()} does not divide {num_experts}"
            )
        part = torch.empty(num_experts // mesh.size(), *parameter.shape[1:], dtype=parameter.dtype, device="meta")
        divided = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(divided, requires_grad=parameter.requires_grad))


def _groups(model: nn.Module, *, has_own_experts: bool) -> Iterator[nn.Module]:
    """Yield the modules whose own weights are gathered together, inner ones first."""
    for module in list(model.modules()):
        if isinstance(module, CarriedAttentionPool | Block):  # the pool never runs, so it is never gathered
            yield module
        elif isinstance(module, DecoderLayer):
            yield from (inner for inner in module.modules() if isinstance(inner, Router) or is_divided(inner))
            if has_own_experts:
                yield from (inner for inner in module.modules() if isinstance(inner, Experts))
            yield module
    # The root holds the rest and stays gathered until the end of the backward pass. The output head must belong to
    # the root, because the loss uses its weight after the model's forward has returned.
    yield model


def _fully_shard(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, *, stays_gathered: bool) -> None:
    # Do not cast inputs, because that would round the rotary angles, which are float32 arguments of every layer.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(
        module,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=False if stays_gathered else None,
        shard_placement_fn=lambda parameter: _placement(parameter, mesh.size()),
    )
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo does not support sums with a factor


def _placement(parameter: nn.Parameter, num_ranks: int) -> Shard:
    """Shard along the first axis that divides evenly; 72 experts on 16 ranks are sharded along an inner axis.

    Experts and layers that are already divided are sharded along another axis.
    """
    if isinstance(parameter, DTensor):
        (taken,) = parameter.placements
        assert isinstance(taken, Shard)
        if parameter.ndim == 2:
            return Shard(1 - taken.dim)
        return Shard(1 + inner_axis(parameter.shape[1:], num_ranks))
    axis = even_axis(parameter.shape, num_ranks)
    return Shard(0 if axis is None else axis)


def even_axis(shape: Sequence[int], num_ranks: int) -> int | None:
    """Return the first axis that divides evenly among the ranks, or None."""
    return next((axis for axis, size in enumerate(shape) if size % num_ranks == 0), None)


def inner_axis(matrix: Sequence[int], num_ranks: int) -> int:
    """Return the axis along which ranks with the same experts shard an expert's matrix.

    Raise UserError if no axis divides evenly.
    """
    axis = even_axis(matrix, num_ranks)
    if axis is None:
        raise UserError(
            f"an expert's matrices of {' x '.join(map(str, matrix))} cannot be sharded over {num_ranks} ranks: "
            "choose a larger engine.expert_parallel"
        )
    return axis


def check_divided(language: LanguageConfig, num_data: int, expert_parallel: int) -> None:
    """Raise UserError unless experts can be divided among `expert_parallel` ranks, and sharded among their holders."""
    num_experts = language.n_routed_experts or 0
    if expert_parallel == 1 or not num_experts:
        return
    if num_experts % expert_parallel:
        raise UserError(
            f"engine.expert_parallel must divide the number of experts: {expert_parallel} does not divide {num_experts}"
        )
    for matrix in expert_matrices(language):
        inner_axis(matrix, num_data // expert_parallel)


def expert_matrices(language: LanguageConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of one routed expert's matrices."""
    width, hidden = language.hidden_size, language.moe_intermediate_size
    return (2 * hidden, width), (width, hidden)


def fill_from_first(name: str, tensor: Tensor, source: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill a tensor on all ranks from the full tensor in the first rank's `source`."""
    full = torch.empty(tensor.shape, dtype=tensor.dtype, device=ranks.device)
    if name in source:
        full.copy_(source[name])
    copy_part_(tensor, ranks.broadcast_(full))


def copy_part_(tensor: Tensor, full: Tensor) -> None:
    """Fill this rank's part of a tensor from the full tensor, which every rank has."""
    if isinstance(tensor, DTensor):
        part = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(full)


def _first_copy(tensor: Tensor, dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """Return the first rank's tensor on this rank's device."""
    if tensor.is_meta:
        assert not ranks.is_first, "the first rank must have the weights"
        tensor = torch.empty(tensor.shape, dtype=dtype, device=ranks.device)
    return ranks.broadcast_(tensor.to(device=ranks.device, dtype=dtype).contiguous())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _cast(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type to which a tensor is cast; the packed weights of a quantized layer keep theirs."""
    return dtype if tensor.is_floating_point() else tensor.dtype
