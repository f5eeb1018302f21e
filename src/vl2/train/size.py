"""Count the trained parameters of a run, and the memory of its weights, gradients and optimizer state.

Activations come in addition. They depend on the sequence length, and dominate for long sequences unless they are
recomputed. Everything is counted on the meta device, without reading weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from vl2.config import ModelConfig
from vl2.lora.attach import lora_layers
from vl2.lora.spec import target_of
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.model.moe import Experts
from vl2.quant.base_modules import BLOCK, SCALES_PER_BLOCK
from vl2.quant.quantize_model import WITHIN
from vl2.train.adapter import put_adapter
from vl2.train.adapter_options import AdapterOptions, BaseKind
from vl2.train.parts import freeze, part_of
from vl2.train.stage import Stage

BITS_PER_WEIGHT: Mapping[BaseKind, float] = {"nf4": 4 + 8 / BLOCK + 32 / (BLOCK * SCALES_PER_BLOCK), "int8": 8.0}


@dataclass(frozen=True, kw_only=True)
class AdaptedSize:
    """What an adapter adds to one kind of layer. The stacked experts of a layer count as one layer."""

    layers: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """The parameter counts and memory of a run."""

    parameters: int
    trained: Mapping[str, int]  # by part: vision, projector, language
    weight_bytes: int
    optimizer_bytes: int  # including gradients
    adapted: Mapping[str, AdaptedSize] = field(default_factory=dict)  # by target of an adapter

    @property
    def num_trained(self) -> int:
        return sum(self.trained.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def trained_size(config: ModelConfig, stage: Stage, adapter: AdapterOptions, dtype: torch.dtype) -> TrainedSize:
    """Return the size of a run for a model configuration."""
    with shapes_only():
        model = VL2(config)
    if adapter.is_used:
        put_adapter(model, adapter)
    freeze(model, stage)
    return size_of(model, stage, adapter, dtype)


def size_of(
    model: VL2, stage: Stage, adapter: AdapterOptions, dtype: torch.dtype, *, is_sharded: bool = False
) -> TrainedSize:
    """Return the size of a run for a model that has its adapter and on which `freeze` has been called.

    Sharded weights are counted over all ranks.
    """
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[part_of(name)] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    few_bits = _num_quantized(model) if adapter.method == "qlora" else 0
    num_trained = sum(trained.values())
    adapted: dict[str, AdaptedSize] = {}
    for name, layer in lora_layers(model):
        target = target_of(name)
        so_far = adapted.get(target, AdaptedSize(layers=0, parameters=0))
        own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        adapted[target] = AdaptedSize(layers=so_far.layers + 1, parameters=so_far.parameters + own)
    held = held_dtype(stage) if is_sharded else dtype  # the type of trained weights; see `shard.py`
    weight_bytes: float = (total - few_bits - num_trained) * dtype.itemsize + num_trained * held.itemsize
    weight_bytes += few_bits * BITS_PER_WEIGHT[adapter.base] / 8
    return TrainedSize(
        parameters=total,
        trained=dict(trained),
        weight_bytes=round(weight_bytes),
        optimizer_bytes=num_trained * optimizer_bytes(stage, held),
        adapted=adapted,
    )


def held_dtype(stage: Stage) -> torch.dtype:
    """Return the type in which sharded ranks hold trained weights. It is the type of the optimizer's masters."""
    return torch.bfloat16 if stage.is_bfloat16_optimizer else torch.float32


def gradient_bytes(stage: Stage) -> int:
    """Return the bytes of a trained weight's gradient sum."""
    return held_dtype(stage).itemsize


def optimizer_bytes(stage: Stage, held: torch.dtype) -> int:
    """Return the bytes per trained weight of type `held`: gradient, two moments, and a master if it is separate.

    A weight of the optimizer's own type is its own master (see `optimizer.py`).
    """
    own = held_dtype(stage)
    return gradient_bytes(stage) + 2 * own.itemsize + (own.itemsize if held != own else 0)


def _num_quantized(model: VL2) -> int:
    """Count the weights that `quantize_base` quantizes."""
    return sum(
        parameter.numel()
        for name, module in model.named_modules()
        if name.startswith(WITHIN) and isinstance(module, nn.Linear | Experts)
        for leaf, parameter in module.named_parameters(recurse=False)
        if leaf != "bias"
    )
