"""How many parameters the segments of a pipeline hold, by formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from vl2.config import ModelConfig
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.model.moe import MoE
from vl2.train.parallel.cut import Segment, Unit


@dataclass(frozen=True, kw_only=True)
class SegmentSize:
    """Parameters of a segment, those of routed experts apart, which ranks may divide among them."""

    dense: float
    experts: float
    num_blocks: int
    num_layers: int


def segment_size(config: ModelConfig, segment: Segment) -> SegmentSize:
    dense = experts = 0
    for unit in segment:
        more, of_experts = _unit_size(config, unit)
        dense += more
        experts += of_experts
    return SegmentSize(
        dense=dense,
        experts=experts,
        num_blocks=sum(unit.kind == "block" for unit in segment),
        num_layers=sum(unit.kind == "layer" for unit in segment),
    )


def _unit_size(config: ModelConfig, unit: Unit) -> tuple[int, int]:
    """Return the parameters of a unit outside routed experts, and in them."""
    model = _shape(config)
    if unit.kind == "block":
        return _count(model.vision.blocks[unit.index]), 0
    if unit.kind == "projector":
        return _count(model.projector), 0
    if unit.kind == "join":
        return _count(model.language.model.embed_tokens), 0
    if unit.kind == "head":
        return _count(model.language.lm_head), 0
    layer = model.language.model.layers[unit.index]
    experts = _count(layer.mlp.experts) if isinstance(layer.mlp, MoE) else 0
    return _count(layer) - experts, experts


@lru_cache(maxsize=4)
def _shape(config: ModelConfig) -> VL2:
    with shapes_only():
        return VL2(config)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
