"""Activation checkpointing, and compilation of the encoder, as functions on a finished model.

Apply them before sharding. Statistics such as the expert load are return values of the first forward pass, so the
recomputation does not count them twice.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.recipe import EncoderRecompute


def checkpoint_activations(model: VL2, *, encoder: EncoderRecompute = "blocks", layers: bool = True) -> None:
    """Keep only the inputs of each vision block and decoder layer, or of the encoder as a whole. In place.

    `encoder="whole"` keeps only the tiles, but the activations of all blocks exist at once in the backward pass.
    """
    if encoder not in get_args(EncoderRecompute):
        raise UserError(f"the encoder's recomputation must be one of {', '.join(get_args(EncoderRecompute))}")
    if encoder == "whole":
        _checkpoint_forward(model.vision)
    elif encoder == "blocks":
        for block in model.encoder_blocks:
            _checkpoint_forward(block)
    if layers:
        for layer in model.language.model.layers:
            _checkpoint_forward(layer)


def compile_encoder(model: VL2, backend: str = "inductor") -> None:
    """Compile the blocks of the encoder for any number of tiles. In place; call this before `checkpoint_activations`.

    The shapes in the blocks vary only in the number of tiles, so each compiles once. The decoder is not compiled,
    because document lengths and expert loads differ in every step.
    """
    for block in model.encoder_blocks:
        block.forward = torch.compile(block.forward, dynamic=True, backend=backend)


def _checkpoint_forward(module: nn.Module) -> None:
    forward = module.forward

    def run(*inputs: Any, **options: Any) -> Any:
        # Without gradients there is nothing to recompute. `checkpoint` would also read the device's random state,
        # which is not allowed during the capture of a CUDA graph.
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    module.forward = run
