"""Models on the meta device, shapes without memory, and giving them memory."""

from __future__ import annotations

import torch
from torch import nn

from vl2.checkpoint.pages import prefer_huge_pages
from vl2.config import ModelConfig
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.quant.quantize_model import Scheme, allocate_quantized


def build_empty(config: ModelConfig, scheme: Scheme | None = None, dtype: torch.dtype | None = None) -> VL2:
    """Return a model on the meta device, quantized where the scheme says so.

    `dtype` is of what is not quantized; None leaves PyTorch's default.
    """
    with shapes_only():
        model = VL2(config)
    if scheme is not None:
        allocate_quantized(model, scheme)
    if dtype is not None:
        materialize(model, dtype, torch.device("meta"))
    return model


def materialize(model: VL2, dtype: torch.dtype, device: torch.device) -> None:
    """Give what is on the meta device uninitialized memory. In place; buffers, as the expert bias, keep their type."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue
            fresh = torch.empty(parameter.shape, dtype=dtype, device=device)
            prefer_huge_pages(fresh)
            setattr(module, name, nn.Parameter(fresh, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            held = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            prefer_huge_pages(held)
            setattr(module, name, held)
