"""Blank packs and tiles for ranks that have no data but must take part in a forward and backward pass.

With sharded weights, all ranks must run every module equally often, because each pass is a collective operation. Blank
data contribute zero gradients.
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

_LENGTH = 8  # tokens; the value does not matter, because ranks may have different shapes


def blank_pack(config: ModelConfig) -> Packed:
    """Return a pack of padding only. Its tokens enter neither the loss nor any count nor the expert load."""
    tile_px, side = config.vision_config.image_size, config.tokens_per_side
    return Packed(
        input_ids=torch.zeros(_LENGTH, dtype=torch.int64),
        labels=torch.full((_LENGTH,), IGNORE_ID),
        position_ids=torch.arange(_LENGTH),
        cu_seqlens=torch.tensor([0, _LENGTH], dtype=torch.int32),
        image_mask=torch.zeros(_LENGTH, dtype=torch.bool),
        tiles=torch.zeros(0, 3, tile_px, tile_px),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        layout=config.layout(side, side),
        num_tokens=0,
        max_seqlen=_LENGTH,
        names=(),
    )


def blank_image_pack(config: ModelConfig) -> Packed:
    """Return a pack that consists of the visual tokens of one blank tile."""
    length, tile_px = num_visual_tokens(UNTILED, config.tokens_per_side), config.siglip.image_size
    return replace(
        blank_pack(config).with_length(length),
        image_mask=torch.ones(length, dtype=torch.bool),
        tiles=torch.zeros(1, 3, tile_px, tile_px),
        grids=torch.tensor([UNTILED]),
    )


def run_pack(model: VL2, pack: Packed, tokens_IQD: Tensor | None = None, *, runs_encoder: bool = False) -> Hidden:
    """Return the hidden states of a pack.

    `tokens_IQD` are the visual tokens of its tiles if they are already encoded. With `runs_encoder` the encoder always
    runs: a pack without images is then joined with a blank tile that has no effect on it. Tokens given with a pack
    without images are those of a blank tile.

    A sharded model has this function as its method `vl2.train.shard.RUN_PACK`, so that FSDP gathers the root's weights
    once for the whole call.
    """
    if len(pack.grids) or not (runs_encoder or tokens_IQD is not None):
        # Call the class's `states`, because a sharded model's own method gathers weights again.
        return VL2.states(model, pack, tokens_IQD=tokens_IQD)
    blank = blank_image_pack(model.config).to(pack.input_ids.device)
    idle_1SD = model.embed_packed(blank, tokens_IQD)
    return model.packed_states(pack, with_no_effect(model.embed_packed(pack), idle_1SD))


def with_no_effect(x: Tensor, idle: Tensor) -> Tensor:
    """Return x unchanged, but let the backward pass also run through `idle`, with zero gradients."""
    out: Tensor = _NoEffect.apply(x, idle)  # type: ignore[no-untyped-call]
    return out


class _NoEffect(torch.autograd.Function):
    """The function behind `with_no_effect`. x + 0 * idle would not do, because it spreads a NaN of `idle` to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, idle: Tensor) -> Tensor:
        ctx.save_for_backward(idle.new_empty(0))
        ctx.shape = idle.shape
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (like,) = ctx.saved_tensors
        return grad, like.new_zeros(ctx.shape)
