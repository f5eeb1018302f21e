"""Linear layers on a CPU in bfloat16: bias, residual and activation are fused into the product or follow it directly.

M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.kernels import load_kernels
from vl2.kernels import prefill_ops as kernels
from vl2.kernels.activation import Activation, activate
from vl2.kernels.matmul import (
    LINE,
    MAX_DECODED_ROWS,
    has_bfloat16_products,
    is_better_in_float32,
    is_decode_step,
    linear_in_float32,
    multiply_many_rows,
)
from vl2.quant.modules import QuantizedLinear
from vl2.quant.quantized_matmul import FEW_PREFILL_ROWS
from vl2.quant.quantized_matmul import linear as quantized_linear


class PanelLinear(nn.Linear):
    """A linear layer for processors without bfloat16 instructions: it multiplies in float32, panel by panel."""

    def forward(self, input: Tensor) -> Tensor:
        if is_better_in_float32(input, self.weight):
            return linear_in_float32(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


class CpuLinear(PanelLinear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(self, input)


def is_plain_linear(layer: object) -> TypeGuard[nn.Linear]:
    """Return whether a layer only multiplies by its weight and adds its bias.

    A kernel may then read the weight directly instead of calling the layer, which an adapter would forbid.
    """
    return type(layer) in (nn.Linear, PanelLinear, CpuLinear)


def linear(
    layer: nn.Module, x: Tensor, *, activation: Activation = Activation.NONE, residual: Tensor | None = None
) -> Tensor:
    """Return a linear layer's output, its activation, or its sum with `residual`, [..., N].

    oneDNN adds the bias and the residual inside the product. The activation is a separate kernel, because with a fused
    one oneDNN takes half as long again.
    """
    rows = x.numel() // x.shape[-1]
    is_many = is_for_kernels(rows, is_decode_step(x), is_plain=is_plain_linear(layer))
    if is_plain_linear(layer) and is_many and kernels.applies(x, layer.weight):
        by_kernel = _linear_of_many_rows(layer, x, activation=activation, residual=residual)
        if by_kernel is not None:
            return by_kernel
        # PyTorch's fused product raises an error on a CPU without bfloat16 instructions.
        if has_bfloat16_products():
            product = torch.ops.mkldnn._linear_pointwise
            if residual is not None:
                added: Tensor = product.binary(x, residual, layer.weight, layer.bias, "add")
                return added
            out: Tensor = product(x, layer.weight, layer.bias, "none", [], "")
            return kernels.activate_(out, activation) if activation else out
    if isinstance(layer, QuantizedLinear):
        held = layer.quantized, layer.out_features, layer.in_features, layer.bias
        return quantized_linear(x, *held, activation=activation, residual=residual)
    out = PanelLinear.forward(layer, x) if isinstance(layer, PanelLinear) else layer(x)
    return activate(out, activation) if residual is None else residual + out


def _linear_of_many_rows(
    layer: nn.Linear, x: Tensor, *, activation: Activation, residual: Tensor | None
) -> Tensor | None:
    """Return the same as `linear` by the kernel for many rows, or None where it does not apply.

    It needs AVX-512 or the matrix extensions of NEON, and a contiguous weight whose rows begin on cache lines.
    """
    library, (N, K) = load_kernels(), layer.weight.shape
    if library is None or not library.has_row_products or K % LINE or not layer.weight.is_contiguous():
        return None
    residual_MN = None if residual is None else residual.reshape(-1, N).contiguous()
    out_MN = multiply_many_rows(
        library, x.reshape(-1, K), layer.weight, bias_N=layer.bias, activation=activation, residual_MN=residual_MN
    )
    return None if out_MN is None else out_MN.view(*x.shape[:-1], N)


def is_for_kernels(rows: int, is_step: bool, *, is_plain: bool) -> bool:
    """Return whether a product of so many rows uses the kernels for many rows.

    Where there are such kernels they are used for plain weights and any number of rows: they are as fast as PyTorch's
    product of few rows, and unlike it they give a row the same bits beside any other rows. Otherwise a decoding step of
    up to MAX_DECODED_ROWS rows, and up to FEW_PREFILL_ROWS rows of a prompt, are computed by the plain modules or by
    the fused decoding step.
    """
    return (is_plain and kernels.has_row_products()) or rows > (MAX_DECODED_ROWS if is_step else FEW_PREFILL_ROWS)
