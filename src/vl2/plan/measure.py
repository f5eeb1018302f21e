"""Measuring what the parts of a model cost on this machine: seconds per tile and per token, and of an update.

One part of each kind is run alone, forward and backward, on as many tiles and tokens as a pack has. What is measured is
the fastest of a few runs: what a part takes when nothing else wants the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.config import ModelConfig
from vl2.data.pack import Packing
from vl2.model import VL2, init_weights
from vl2.model.language import DecoderLayer
from vl2.model.mask import AttentionMask
from vl2.model.moe import sequences_of_documents
from vl2.model.rope import rotary_angles
from vl2.plan.profile import DataProfile
from vl2.train.loss import next_token_loss
from vl2.train.optimizer import MasterAdamW
from vl2.train.parallel.unit_costs import UnitCosts
from vl2.train.parts import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a part is measured on."""

    tiles: int
    tokens: int
    document: int  # tokens of each document
    trained_share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class _Timing:
    forward_s: float
    backward_s: float


def measure_here(config: ModelConfig, profile: DataProfile) -> UnitCosts:
    """Measure on the device and in the type that training takes here, on the mean pack of a profile."""
    packing = Packing()
    tokens, tiles = profile.draw_packs(config, packing, 64, 0)
    load = Load(
        tiles=max(round(float(tiles.mean())), 1),
        tokens=round(float(tokens.mean())),
        document=max(round(profile.document_length(config)), 1),
    )
    is_cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if is_cuda else "cpu"), torch.bfloat16 if is_cuda else torch.float32
    return measure_costs(config, load, device=device, dtype=dtype)


def measure_costs(
    config: ModelConfig, load: Load, *, device: torch.device, dtype: torch.dtype, repeats: int = 5
) -> UnitCosts:
    """Return the seconds of one part of each kind, with random weights. Takes the memory of one layer of each kind."""
    one = _one_of_each(config).to(device)
    width = config.language_config.hidden_size
    vision = config.vision_config
    patches = torch.randn(load.tiles, vision.patches_per_side**2, vision.width, device=device, dtype=dtype)
    states = torch.randn(1, load.tokens, width, device=device, dtype=dtype)
    ids = torch.randint(config.language_config.vocab_size, (1, load.tokens), device=device)

    def time_of(run: Callable[..., Tensor], *inputs: Tensor) -> _Timing:
        return _time(run, [x.requires_grad_(x.is_floating_point()) for x in inputs], device, repeats)

    _cast(one, dtype)
    layers = one.language.model.layers
    timings = {
        "block": time_of(one.vision.blocks[0], patches),
        "projector": time_of(lambda x: one.projector(one.vision.norm(x)), patches),
        "join": time_of(one.language.embed, ids),
        "dense_layer": time_of(_layer(layers[0], config, load, device), states),
        "layer": time_of(_layer(layers[-1], config, load, device), states),
        "head": time_of(_head(one, config, load, device), states),
    }
    visual = ("block", "projector")
    forward = {
        name: (t.forward_s / load.tiles, 0.0) if name in visual else (0.0, t.forward_s / load.tokens)
        for name, t in timings.items()
    }
    counts = {"block": vision.layers, "layer": config.language_config.num_hidden_layers}
    total = [
        sum(getattr(t, way) * counts.get(name, 1) for name, t in timings.items()) for way in ("forward_s", "backward_s")
    ]
    return UnitCosts(**forward, backward_ratio=total[1] / total[0], update=_update_s(one, device, repeats))


def _one_of_each(config: ModelConfig) -> VL2:
    """Return a model with one vision block, and one layer of each kind."""
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
        if not name.endswith("gate.weight"):  # routers are float32 in any type
            parameter.data = parameter.data.to(dtype)


def _layer(layer: nn.Module, config: ModelConfig, load: Load, device: torch.device) -> Callable[[Tensor], Tensor]:
    assert isinstance(layer, DecoderLayer)
    language = config.language_config
    borders = [*range(0, load.tokens, load.document), load.tokens]
    cu_seqlens = torch.tensor(borders, dtype=torch.int32, device=device)
    lengths = cu_seqlens.diff().tolist()
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
    rotary = language.qk_rope_head_dim if language.use_mla else language.hidden_size // language.num_attention_heads
    angles = rotary_angles(positions, rotary, language.rope_theta)
    mask = AttentionMask.of_documents(cu_seqlens, max(lengths))
    sequences = sequences_of_documents(cu_seqlens, load.tokens, load.tokens, "sequence")
    return lambda x: layer(x, angles, mask, None, sequences)[0]


def _head(model: VL2, config: ModelConfig, load: Load, device: torch.device) -> Callable[[Tensor], Tensor]:
    labels = torch.randint(config.language_config.vocab_size, (load.tokens,), device=device)
    labels[: round(load.tokens * (1 - load.trained_share))] = -100
    weight = model.language.lm_head.weight
    return lambda x: next_token_loss(model.language.model.norm(x)[0], labels, weight)[0]


def _update_s(model: VL2, device: torch.device, repeats: int) -> float:
    """Return the seconds that norm, clipping and AdamW take for one parameter."""
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
        start = _now(device)
        optimizer.grad_norm()
        optimizer.scale(0.5)
        optimizer.step(1e-5)
        best = min(best, _now(device) - start)
    return best / sum(p.numel() for _, p in named)


def _time(run: Callable[..., Tensor], inputs: list[Tensor], device: torch.device, repeats: int) -> _Timing:
    forward = backward = float("inf")
    for _ in range(repeats + 1):
        start = _now(device)
        out = run(*inputs)
        middle = _now(device)
        out.backward(torch.ones_like(out))
        end = _now(device)
        forward, backward = min(forward, middle - start), min(backward, end - middle)
    return _Timing(forward_s=forward, backward_s=backward)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
