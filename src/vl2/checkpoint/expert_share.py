"""Load only some of the routed experts: the share of one rank of those that divide the experts of every layer.

Shares are ranges of experts that differ by at most one expert. E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from vl2.checkpoint.names import Place
from vl2.checkpoint.safetensors_file import StoredTensor
from vl2.model.moe import Experts
from vl2.quant.modules import QuantizedExperts


@dataclass(frozen=True, kw_only=True)
class ExpertShare:
    """The experts that a rank loads."""

    rank: int
    size: int  # ranks
    only_experts: bool  # load nothing else; the other weights stay on the meta device

    def of(self, num_experts: int) -> range:
        bounds = expert_bounds(num_experts, self.size)
        return range(bounds[self.rank], bounds[self.rank + 1])


def expert_bounds(num_experts: int, size: int) -> list[int]:
    """Return the first expert of each of `size` ranks, followed by the number of experts."""
    return [num_experts * rank // size for rank in range(size + 1)]


def expert_stacks(model: nn.Module) -> Iterator[tuple[str, Experts | QuantizedExperts]]:
    """Yield the stacked experts of every layer with their names, in the order of the layers."""
    for name, module in model.named_modules():
        if isinstance(module, Experts | QuantizedExperts):
            yield name, module


def keep_share(
    model: nn.Module, share: ExpertShare, wanted: Sequence[Place], stored: Mapping[str, StoredTensor]
) -> tuple[list[Place], dict[str, StoredTensor]]:
    """Cut the stacks of experts of a model on the meta device to a share, in place.

    Return the places in the model as it is now, and the stored tensors that belong there. In quantized files the stacks
    are whole tensors, of which the share is read.
    """
    own = dict[str, range]()
    for name, experts in expert_stacks(model):
        tensors = {**dict(experts.named_parameters()), **dict(experts.named_buffers())}
        own[name] = share.of(len(next(iter(tensors.values()))))
        for leaf, tensor in tensors.items():
            part = torch.empty(len(own[name]), *tensor.shape[1:], dtype=tensor.dtype, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(experts, leaf, nn.Parameter(part, requires_grad=tensor.requires_grad) if is_parameter else part)
        if isinstance(experts, QuantizedExperts):
            experts.num_experts = len(own[name])
    places, tensors_left = list[Place](), dict(stored)
    for place in wanted:
        experts_held = own.get(place.parameter.rpartition(".")[0])
        if experts_held is None:
            if not share.only_experts:
                places.append(place)
        elif place.expert is None:
            places.append(place)
            tensors_left[place.name] = _slice(stored[place.name], experts_held)
        elif place.expert in experts_held:
            places.append(replace(place, expert=place.expert - experts_held.start))
    return places, tensors_left


def _slice(tensor: StoredTensor, experts: range) -> StoredTensor:
    step = tensor.nbytes // tensor.shape[0]
    return replace(
        tensor,
        shape=(len(experts), *tensor.shape[1:]),
        offset=tensor.offset + experts.start * step,
        nbytes=len(experts) * step,
    )
