"""Multiply by a quantized weight. The number of rows and the processor decide which method is used.

| weight | rows                               | where                      | activations                            |
|--------|------------------------------------|----------------------------|----------------------------------------|
| int8   | over 32; over 8 of a prompt (1)    | CPU, 8-bit instructions    | int8, a scale for each row             |
| int4   | over 64, in bfloat16               | CPU, bfloat16 instructions | bfloat16; the weight is dequantized    |
| either | 12 or more                         | CPU without these          | float32; dequantized a panel at a time |
| either | fewer                              | CPU with the kernels       | 16 bits; the kernels read the codes    |
| either | any                                | no kernels, other devices  | as they are; dequantized in parts      |

(1) With AVX-512, and with the matrix extensions of NEON.

int8 activations are twice as fast as bfloat16 ones. On a processor without the instructions, float32 panels are ten
times as fast as kernels that read the codes. "In parts" means about four million weights at a time.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.kernels import load_kernels
from vl2.kernels.activation import Activation, activate
from vl2.kernels.library import Library
from vl2.kernels.matmul import (
    LANES,
    MAX_DECODED_ROWS,
    has_bfloat16_products,
    int8_linear,
    is_decode_step,
    matmul,
    matmul_panels,
)
from vl2.kernels.prefill_ops import has_row_products, has_tiles
from vl2.kernels.structures import INT8, QUANTIZED, MatrixC
from vl2.quant.formats import PANEL, Kind, Quantized, dequantize

# Up to this many rows, reading the weight dominates the time, so the activations keep their 16 bits.
FEW_ROWS = 32
# The same limit for a prefill with AMX, whose tile registers take 16 rows in the time of one, and with the matrix
# extensions of NEON, where activations of 16 bits take twice the instructions of activations of 8 bits.
FEW_PREFILL_ROWS = 8
# Up to this many rows per expert, on average, an int4 weight is multiplied without being dequantized, because
# dequantizing it would take longer. With tile registers the limit is 1: a tile multiplies 16 rows in the time of one.
FEW_FOR_CODES = 8
FEW_FOR_CODES_WITH_TILES = 1
MADE = 1 << 22  # weights dequantized at a time without the kernels: a whole expert, or a thirtieth of tiny's head
PANEL_ROWS = 12  # least number of rows at which panels are faster on a processor without the instructions


def linear(
    x: Tensor,
    weight: Quantized,
    N: int,
    K: int,
    bias: Tensor | None = None,
    *,
    activation: Activation = Activation.NONE,
    residual: Tensor | None = None,
) -> Tensor:
    """Return x [..., K] times the transposed weight, plus the bias, as [..., N] in the type of x.

    The result is as it is, with an activation, or plus `residual` [..., N].
    """
    kernels = int8_kernels(x, N, bias) if weight.kind == "int8" and x.numel() > _few_rows(x) * K else None
    if kernels is not None:
        residual_MN = None if residual is None else residual.reshape(-1, N).contiguous()
        held = weight.codes, weight.scales
        out_MN = int8_linear(
            kernels, x.reshape(-1, K), *held, bias_N=bias, activation=activation, residual_MN=residual_MN
        )
        return out_MN.view(*x.shape[:-1], N)
    out = _linear(x, weight, N, K, bias)
    return activate(out, activation) if residual is None else residual + out


def few_rows_of_an_expert() -> int:
    """Return up to how many rows per expert, on average, an int4 weight is multiplied without being dequantized."""
    return FEW_FOR_CODES_WITH_TILES if has_tiles() else FEW_FOR_CODES


def _few_rows(x: Tensor) -> int:
    return FEW_ROWS if is_decode_step(x) or not has_row_products() else FEW_PREFILL_ROWS


def _linear(x: Tensor, weight: Quantized, N: int, K: int, bias: Tensor | None) -> Tensor:
    x_MK = x.reshape(-1, K)
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32) or not len(x_MK):
        return matmul_in_parts(x, weight, N, K, bias)
    if weight.kind == "int8" and len(x_MK) > FEW_ROWS and has_int8_products():
        out_MN = int8_matmul(x_MK, weight)
    else:
        kernels = load_kernels()
        is_unpacked = weight.kind == "int4" and x.dtype == torch.bfloat16 and len(x_MK) > MAX_DECODED_ROWS
        if kernels is None:
            return matmul_in_parts(x, weight, N, K, bias)
        if is_unpacked and _has_instructions(kernels, "int4"):
            return F.linear(x, dequantize(weight, N, K, x.dtype), bias)
        if len(x_MK) >= PANEL_ROWS and not _has_instructions(kernels, weight.kind):
            return matmul_in_float32(x, weight, N, K, bias)
        held = MatrixC(QUANTIZED[weight.kind], N, K, weight.codes.data_ptr(), weight.scales.data_ptr())
        out_MN = matmul(kernels, held, x_MK)
    if bias is not None:
        out_MN = out_MN.add_(bias)
    return out_MN.to(x.dtype).view(*x.shape[:-1], N)


def matmul_in_parts(x: Tensor, weight: Quantized, N: int, K: int, bias: Tensor | None) -> Tensor:
    """Return x times the transposed weight, plus the bias, in the type of x, dequantizing some rows at a time."""
    step = max(1, MADE // (K * PANEL)) * PANEL
    if step >= N:
        return F.linear(x, dequantize(weight, N, K, x.dtype), bias)
    out = x.new_empty(*x.shape[:-1], N)
    for first in range(0, N, step):
        last = min(first + step, N)
        part = dequantize(weight.rows(first, last), last - first, K, x.dtype)
        out[..., first:last] = F.linear(x, part, None if bias is None else bias[first:last])
    return out


def matmul_in_float32(x: Tensor, weight: Quantized, N: int, K: int, bias: Tensor | None) -> Tensor:
    """Return x times the transposed weight, plus the bias, in the type of x.

    The product is computed in float32, and the weight is dequantized one panel of rows at a time.
    """
    return matmul_panels(
        x, N, K, lambda first, last: dequantize(weight.rows(first, last), last - first, K, torch.float32), bias, PANEL
    )


@cache
def has_int8_products() -> bool:
    """Return whether this CPU has VNNI. Without it PyTorch multiplies 8-bit numbers in a slow loop."""
    return bool(torch.cpu._is_vnni_supported())


def _has_instructions(kernels: Library, kind: Kind) -> bool:
    # The kernels dequantize int4, and PyTorch multiplies: on macOS it has no bfloat16 products.
    return has_int8_products() if kind == "int8" else kernels.has_bfloat16_products and has_bfloat16_products()


def matmul_dtype(kind: Kind | None, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type in which many rows of type `dtype` are multiplied by a weight of format `kind` (None: plain)."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return dtype
    if kind is None:
        return dtype if has_bfloat16_products() else torch.float32
    kernels = load_kernels()
    has_rows = kernels is not None and kernels.has_row_products and dtype == torch.bfloat16
    if kind == "int8" and (has_int8_products() or has_rows):
        return torch.int8
    if kernels is None:
        return dtype  # without kernels, parts of the weight are dequantized to the type of the rows
    return torch.bfloat16 if _has_instructions(kernels, kind) else torch.float32


def matmul_few_rows(kernels: Library, x_MK: Tensor, codes_NK: Tensor, scales_N: Tensor) -> Tensor:
    """Return x times the transposed int8 weight, float32 [M, N]. The activations are not rounded to 8 bits."""
    return matmul(kernels, MatrixC(INT8, *codes_NK.shape, codes_NK.data_ptr(), scales_N.data_ptr()), x_MK)


def int8_kernels(x: Tensor, N: int, bias: Tensor | None = None) -> Library | None:
    """Return the kernels if they can multiply these activations in int8 with outputs of N columns, otherwise None."""
    types = {x.dtype} if bias is None else {x.dtype, bias.dtype}
    is_inference = not (torch.is_grad_enabled() and x.requires_grad)
    applies = x.device.type == "cpu" and types == {torch.bfloat16} and N >= LANES and is_inference
    kernels = load_kernels() if applies else None
    return kernels if kernels is not None and (has_int8_products() or kernels.has_row_products) else None


def int8_matmul(x_MK: Tensor, weight: Quantized) -> Tensor:
    """Return x times the transposed int8 weight, float32 [M, N], with x rounded to 8 bits by a scale per row."""
    largest_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().clamp_(min=1e-30)
    codes_MK = (x_MK.float() * (127 / largest_M1)).round_().to(torch.int8)
    sums_MN = torch._int_mm(codes_MK, weight.codes.T)
    return sums_MN.float().mul_(largest_M1 / 127).mul_(weight.scales)
