"""Memory of a training process: activations that are computed again instead of kept, and pages that are kept.

Checkpointing is a function applied to a finished model, before it is sharded. What modules report of a pass, such as
the expert load, is returned from the first run and not collected anywhere, so the second run counts nothing twice.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.recipe import EncoderRecompute

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def checkpoint_activations(model: VL2, *, encoder: EncoderRecompute = "blocks", layers: bool = True) -> None:
    """Keep only the inputs of each vision block and each decoder layer, or of the encoder as a whole. In place.

    "whole" keeps the tiles alone, at the price that the inside of all blocks is there at once in the backward pass.
    """
    if encoder not in get_args(EncoderRecompute):
        raise UserError(f"the encoder's recomputation must be one of {', '.join(get_args(EncoderRecompute))}")
    if encoder == "whole":
        _run_again(model.vision)
    elif encoder == "blocks":
        for block in model.vision.blocks:
            _run_again(block)
    if layers:
        for layer in model.language.model.layers:
            _run_again(layer)


def compile_encoder(model: VL2, backend: str = "inductor") -> None:
    """Compile the vision blocks, for any number of tiles. In place; before activations are checkpointed.

    The blocks are one dense computation that always has the same shape but for the tiles, so they compile once. The
    decoder is left as it is: its documents and the loads of its experts have other lengths in every step.
    """
    for block in model.vision.blocks:
        block.forward = torch.compile(block.forward, dynamic=True, backend=backend)


def keep_freed_pages() -> None:
    """Let the C library keep what is freed for the next step, instead of giving it back to the system page by page.

    Every step of a training allocates the same again. With glibc's defaults a page fault for each 4 KiB makes simple
    operations on a CPU three times slower. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def _run_again(module: nn.Module) -> None:
    forward = module.forward

    def run(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False)

    module.forward = run
