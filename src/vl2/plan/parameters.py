"""How many parameters the segments of a pipeline hold, by formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import torch

from vl2.config import ModelConfig
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.model.moe import MoE
from vl2.train.parallel.pipeline_split import Segment, Unit
from vl2.train.shard import even_axis, expert_matrices


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


def fullest_share(config: ModelConfig, num_data: int, expert_parallel: int) -> float:
    """Return the part of the routed experts' parameters that the fullest of the ranks with the same layers holds.

    Divided experts are always cut evenly. Undivided ones go whole to ranks where no axis divides, to some none.
    """
    language = config.language_config
    if expert_parallel > 1 or not language.n_routed_experts:
        return 1 / num_data
    experts, held = language.n_routed_experts, 0.0
    matrices = expert_matrices(language)
    for matrix in matrices:
        is_even = even_axis((experts, *matrix), num_data) is not None
        held += prod(matrix) * (1 / num_data if is_even else ceil(experts / num_data) / experts)
    return held / sum(map(prod, matrices))


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
