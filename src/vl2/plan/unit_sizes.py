"""The size and cost of pipeline units (the layers that a pipeline is split into).

Sizes are numbers of parameters. Costs are seconds measured on this machine: one unit of each kind runs alone, forward
and backward, on the tiles and tokens of a mean pack. The fastest of a few runs counts, because other programs can only
slow a run down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import torch
from torch import Tensor, nn

from vl2.config import ModelConfig
from vl2.data.pack import Packing
from vl2.model import VL2, init_weights
from vl2.model.empty import shapes_only
from vl2.model.language import DecoderLayer
from vl2.model.mask import AttentionMask
from vl2.model.moe import MoE, sequences_of_documents
from vl2.model.rope import rotary_angles
from vl2.plan.cluster import DataProfile
from vl2.process.sample import IGNORE_ID
from vl2.timing import time_when_done
from vl2.train.loss import next_token_loss
from vl2.train.optimizer import MasterAdamW
from vl2.train.parallel.pipeline_split import Segment, Unit, UnitCosts
from vl2.train.parts import ParameterGroup
from vl2.train.shard import even_axis, expert_matrices


@dataclass(frozen=True, kw_only=True)
class SegmentSize:
    """Numbers of parameters and layers of a pipeline segment. Routed experts are counted apart from the dense part."""

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


def largest_expert_share(config: ModelConfig, num_data: int, expert_parallel: int) -> float:
    """Return the largest share of the routed experts' parameters that any of the ranks with the same layers holds.

    With expert parallelism the shares are equal. Without it, a matrix is sharded evenly if one of its axes can be
    divided by the number of ranks; otherwise whole experts are distributed, and some ranks may have none.
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
    """Return the number of a unit's parameters outside the routed experts, and that in them."""
    model = _model_on_meta(config)
    if unit.kind == "block":
        return _count(model.siglip.blocks[unit.index]), 0
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
def _model_on_meta(config: ModelConfig) -> VL2:
    with shapes_only():
        return VL2(config)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True, kw_only=True)
class CostInputs:
    """Sizes of the inputs on which costs are measured."""

    tiles: int
    tokens: int
    document: int  # tokens of each document
    trained_share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class _Timing:
    forward_s: float
    backward_s: float


def measure_here(config: ModelConfig, profile: DataProfile) -> UnitCosts:
    """Measure costs on this machine's training device and type, with the mean pack of a data profile."""
    packing = Packing()
    tokens, tiles = profile.draw_packs(config, packing, 64, 0)
    inputs = CostInputs(
        tiles=max(round(float(tiles.mean())), 1),
        tokens=round(float(tokens.mean())),
        document=max(round(profile.document_length(config)), 1),
    )
    is_cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if is_cuda else "cpu"), torch.bfloat16 if is_cuda else torch.float32
    return measure_costs(config, inputs, device=device, dtype=dtype)


def measure_costs(
    config: ModelConfig, inputs: CostInputs, *, device: torch.device, dtype: torch.dtype, repeats: int = 5
) -> UnitCosts:
    """Measure the seconds of one unit of each kind, with random weights.

    This needs the memory of one vision block, one dense and one MoE layer, the embedding and the head.
    """
    one = _one_of_each(config).to(device)
    width = config.language_config.hidden_size
    vision = config.siglip
    patches = torch.randn(inputs.tiles, vision.patches_per_side**2, vision.width, device=device, dtype=dtype)
    states = torch.randn(1, inputs.tokens, width, device=device, dtype=dtype)
    ids = torch.randint(config.language_config.vocab_size, (1, inputs.tokens), device=device)

    def time_of(run: Callable[..., Tensor], *inputs: Tensor) -> _Timing:
        return _time(run, [x.requires_grad_(x.is_floating_point()) for x in inputs], device, repeats)

    _cast(one, dtype)
    layers = one.language.model.layers
    timings = {
        "block": time_of(one.siglip.blocks[0], patches),
        "projector": time_of(lambda x: one.projector(one.siglip.norm(x)), patches),
        "join": time_of(one.language.embed, ids),
        "dense_layer": time_of(_layer(layers[0], config, inputs, device), states),
        "layer": time_of(_layer(layers[-1], config, inputs, device), states),
        "head": time_of(_head(one, config, inputs, device), states),
    }
    visual = ("block", "projector")
    forward = {
        name: (t.forward_s / inputs.tiles, 0.0) if name in visual else (0.0, t.forward_s / inputs.tokens)
        for name, t in timings.items()
    }
    counts = {"block": vision.layers, "layer": config.language_config.num_hidden_layers}
    total = [
        sum(getattr(t, way) * counts.get(name, 1) for name, t in timings.items()) for way in ("forward_s", "backward_s")
    ]
    return UnitCosts(**forward, backward_ratio=total[1] / total[0], update=_update_s(one, device, repeats))


def _one_of_each(config: ModelConfig) -> VL2:
    """Return a model with one vision block and one language layer of each kind."""
    source = config.to_dict()
    language = {"num_hidden_layers": min(2, config.language_config.num_hidden_layers)}
    small = {
        "vision_config": source["vision_config"] | {"layers": 1},
        "language_config": source["language_config"] | language,
    }
    model = VL2(ModelConfig.from_dict(source | small))
    init_weights(model, 0)
    return model


def _cast(model: VL2, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if not name.endswith("gate.weight"):  # routers stay float32
            parameter.data = parameter.data.to(dtype)


def _layer(
    layer: nn.Module, config: ModelConfig, inputs: CostInputs, device: torch.device
) -> Callable[[Tensor], Tensor]:
    assert isinstance(layer, DecoderLayer)
    language = config.language_config
    borders = [*range(0, inputs.tokens, inputs.document), inputs.tokens]
    cu_seqlens = torch.tensor(borders, dtype=torch.int32, device=device)
    lengths = cu_seqlens.diff().tolist()
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
    rotary = language.qk_rope_head_dim if language.use_mla else language.hidden_size // language.num_attention_heads
    angles = rotary_angles(positions, rotary, language.rope_theta)
    mask = AttentionMask.of_documents(cu_seqlens, max(lengths))
    sequences = sequences_of_documents(cu_seqlens, inputs.tokens, inputs.tokens, "sequence")
    return lambda x: layer(x, angles, mask, None, sequences)[0]


def _head(model: VL2, config: ModelConfig, inputs: CostInputs, device: torch.device) -> Callable[[Tensor], Tensor]:
    labels = torch.randint(config.language_config.vocab_size, (inputs.tokens,), device=device)
    labels[: round(inputs.tokens * (1 - inputs.trained_share))] = IGNORE_ID
    weight = model.language.lm_head.weight
    return lambda x: next_token_loss(model.language.model.norm(x)[0], labels, weight)[0]


def _update_s(model: VL2, device: torch.device, repeats: int) -> float:
    """Return the seconds of gradient norm, clipping and AdamW, per parameter."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    group = ParameterGroup(
        names=tuple(name for name, _ in named),
        parameters=tuple(p for _, p in named),
        rate_multiplier=1.0,
        weight_decay=0.1,
    )
    optimizer = MasterAdamW([group], betas=(0.9, 0.95), eps=1e-8)
    best = float("inf")
    for _ in range(repeats):
        start = time_when_done(device)
        optimizer.grad_norm()
        optimizer.scale(0.5)
        optimizer.step(1e-5)
        best = min(best, time_when_done(device) - start)
    return best / sum(p.numel() for _, p in named)


def _time(run: Callable[..., Tensor], inputs: list[Tensor], device: torch.device, repeats: int) -> _Timing:
    forward = backward = float("inf")
    for _ in range(repeats + 1):
        start = time_when_done(device)
        out = run(*inputs)
        middle = time_when_done(device)
        out.backward(torch.ones_like(out))
        end = time_when_done(device)
        forward, backward = min(forward, middle - start), min(backward, end - middle)
    return _Timing(forward_s=forward, backward_s=backward)
