"""What a rank runs where it has nothing of its own but must take part: padding and a blank tile, which train nothing.

Ranks that share the weights in parts must run all of them equally often, forward and backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vl2.config import ModelConfig
from vl2.data.pack import Packed
from vl2.grid import UNTILED, num_visual_tokens
from vl2.model import VL2
from vl2.model.language import Hidden
from vl2.process.sample import IGNORE_ID

_LENGTH = 8  # tokens; any number does, no rank needs the shapes of another


def blank_pack(config: ModelConfig) -> Packed:
    """Return a pack without samples: no token of it is trained, counted, or seen by the balance of the experts."""
    tile_px = config.siglip.image_size
    return Packed(
        input_ids=torch.zeros(_LENGTH, dtype=torch.int64),
        labels=torch.full((_LENGTH,), IGNORE_ID),
        position_ids=torch.arange(_LENGTH),
        cu_seqlens=torch.tensor([0, _LENGTH], dtype=torch.int32),
        image_mask=torch.zeros(_LENGTH, dtype=torch.bool),
        tiles=torch.zeros(0, 3, tile_px, tile_px),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        tokens_per_side=config.tokens_per_side,
        num_tokens=0,
        max_seqlen=_LENGTH,
        names=(),
    )


def blank_image_pack(config: ModelConfig) -> Packed:
    """Return a pack of nothing but the visual tokens of one blank tile."""
    length, tile_px = num_visual_tokens(UNTILED, config.tokens_per_side), config.siglip.image_size
    return replace(
        blank_pack(config).with_length(length),
        image_mask=torch.ones(length, dtype=torch.bool),
        tiles=torch.zeros(1, 3, tile_px, tile_px),
        grids=torch.tensor([UNTILED]),
    )


def run_pack(model: VL2, pack: Packed, tokens_IQD: Tensor | None = None, *, runs_encoder: bool = False) -> Hidden:
    """Return the states of a pack.

    `tokens_IQD` are the visual tokens of its tiles where they have been encoded already. With `runs_encoder` the
    encoder runs in any case. A pack without images then joins a blank tile, to no effect; tokens given with such a
    pack are those of a blank tile.

    A sharded model has this as a method, `vl2.train.shard.RUN_PACK`, whose weights are gathered around it as a whole.
    """
    if len(pack.grids) or not (runs_encoder or tokens_IQD is not None):
        # Not the model's own `states`, which gathers weights itself where a model is sharded.
        return VL2.states(model, pack, tokens_IQD=tokens_IQD)
    blank = blank_image_pack(model.config).to(pack.input_ids.device)
    idle_1SD = model.embed_packed(blank, tokens_IQD)
    return model.packed_states(pack, with_no_effect(model.embed_packed(pack), idle_1SD))


def with_no_effect(x: Tensor, idle: Tensor) -> Tensor:
    """Return x. Backward runs through `idle` as well, with gradients of zeros."""
    out: Tensor = _NoEffect.apply(x, idle)  # type: ignore[no-untyped-call]
    return out


class _NoEffect(torch.autograd.Function):
    """Not x + 0 * idle, in which a NaN of `idle` would reach x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, idle: Tensor) -> Tensor:
        ctx.save_for_backward(idle.new_empty(0))
        ctx.shape = idle.shape
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (like,) = ctx.saved_tensors
        return grad, like.new_zeros(ctx.shape)
