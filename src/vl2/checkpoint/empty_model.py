"""Build models on the meta device, where tensors have shapes but no memory, and allocate their memory later."""

from __future__ import annotations

import torch
from torch import nn

from vl2.checkpoint.pages import prefer_huge_pages
from vl2.config import ModelConfig
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.quant.quantize_model import Scheme, allocate_quantized


def build_empty(config: ModelConfig, scheme: Scheme | None = None, dtype: torch.dtype | None = None) -> VL2:
    """Return a model on the meta device, with quantized layers where the scheme asks for them.

    `dtype` is the type of the parameters that are not quantized; None leaves PyTorch's default.
    """
    with shapes_only():
        model = VL2(config)
    if scheme is not None:
        allocate_quantized(model, scheme)
    if dtype is not None:
        materialize(model, dtype, torch.device("meta"))
    return model


def materialize(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace the tensors of a model, or of a part, on the meta device by uninitialized memory on `device`, in place.

    Parameters get `dtype`; buffers, such as the expert bias, keep their own type.
    """
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
