"""Activations that are computed again instead of kept, and the encoder compiled.

Checkpointing is a function applied to a finished model, before it is sharded. What modules report of a pass, such as
the expert load, is returned from the first run and not collected anywhere, so the second run counts nothing twice.
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
    """Keep only the inputs of each vision block and each decoder layer, or of the encoder as a whole. In place.

    "whole" keeps the tiles alone, at the price that the inside of all blocks is there at once in the backward pass.
    """
    if encoder not in get_args(EncoderRecompute):
        raise UserError(f"the encoder's recomputation must be one of {', '.join(get_args(EncoderRecompute))}")
    if encoder == "whole":
        _run_again(model.vision)
    elif encoder == "blocks":
        for block in model.siglip.blocks:
            _run_again(block)
    if layers:
        for layer in model.language.model.layers:
            _run_again(layer)


def compile_encoder(model: VL2, backend: str = "inductor") -> None:
    """Compile the vision blocks, for any number of tiles. In place; before activations are checkpointed.

    The blocks are one dense computation that always has the same shape but for the tiles, so they compile once. The
    decoder is left as it is: its documents and the loads of its experts have other lengths in every step.
    """
    for block in model.siglip.blocks:
        block.forward = torch.compile(block.forward, dynamic=True, backend=backend)


def _run_again(module: nn.Module) -> None:
    forward = module.forward

    def run(*inputs: Any, **options: Any) -> Any:
        # An evaluation keeps nothing to compute again, and `checkpoint` reads the device's random state first, which
        # a CUDA graph that is being recorded does not allow.
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    module.forward = run
