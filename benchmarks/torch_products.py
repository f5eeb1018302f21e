"""Products of a few rows as PyTorch and TorchAO make them on a CPU, with many weights of one shape laid out for each.

Each function takes a weight [N, K] in bfloat16, the rows of the inputs and how many copies to make, and returns what
multiplies an input with each copy in turn, and the bytes that one copy's product must read. Rounding is of the
simplest kind, for what is measured is speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.checkpoint.pages import prefer_huge_pages

GROUP = 32  # inputs that share a scale of int4
Product = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor, int, int], tuple[list[Product], int]]


def copies(tensor: Tensor, count: int) -> Tensor:
    """Return [count, *shape], in large pages."""
    out = torch.empty(count, *tensor.shape, dtype=tensor.dtype)
    prefer_huge_pages(out)
    return out.copy_(tensor.expand_as(out))


def plain(weight: Tensor, rows: int, count: int) -> tuple[list[Product], int]:
    return [partial(F.linear, weight=each) for each in copies(weight, count)], weight.nbytes


def prepacked(weight: Tensor, rows: int, count: int) -> tuple[list[Product], int]:
    """oneDNN's own layout for so many rows: what `torch.compile` makes of a frozen layer."""
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for _ in range(count)]

    def multiply(each: Tensor, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, each, None, "none", [], "")
        return out

    return [partial(multiply, each) for each in packed], weight.nbytes


def int8pack(weight: Tensor, rows: int, count: int) -> tuple[list[Product], int]:
    scales = weight.float().abs().amax(1) / 127
    codes = (weight.float() / scales[:, None]).round().to(torch.int8)
    kept = scales.to(torch.bfloat16)

    def multiply(each: Tensor, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, each, kept)

    return [partial(multiply, each) for each in copies(codes, count)], codes.nbytes + kept.nbytes


def int4pack(weight: Tensor, rows: int, count: int) -> tuple[list[Product], int]:
    N, K = weight.shape
    grouped = weight.float().view(N, -1, GROUP)
    scales = grouped.abs().amax(-1) / 7
    codes = (grouped / scales[..., None]).round().clamp(-8, 7).to(torch.int32).view(N, K) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).to(torch.bfloat16)
    kept = copies(scales_and_zeros, count)

    def multiply(each: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, each, GROUP, scale)
        return out

    pairs = zip(copies(packed, count), kept, strict=True)
    return [partial(multiply, each, scale) for each, scale in pairs], packed.nbytes + kept[0].nbytes


def torchao_int8(weight: Tensor, rows: int, count: int) -> tuple[list[Product], int]:
    """TorchAO's int8 weights, compiled, for uncompiled they are made bfloat16 in every product."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = []
    for _ in range(count):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())
        layers.append(layer)
    compiled = torch.compile(lambda layer, x: layer(x))
    return [partial(compiled, layer) for layer in layers], weight.numel() + 2 * weight.shape[0]


def layouts() -> dict[str, Layout]:
    ways: dict[str, Layout] = {
        "PyTorch linear, bfloat16": plain,
        "oneDNN, packed before, bfloat16": prepacked,
        "PyTorch _weight_int8pack_mm": int8pack,
        "PyTorch _weight_int4pack_mm_for_cpu": int4pack,
    }
    if importlib.util.find_spec("torchao") is not None:
        ways["TorchAO int8, compiled"] = torchao_int8
    return ways
