"""Matrix products on the CPU: bfloat16 rows times a bfloat16, int8 or int4 weight.

M rows, K inputs, N outputs.

- bfloat16 with AVX-512, AMX or the matrix extensions of NEON: `multiply_many_rows`, which uses csrc/gemm.h.
- bfloat16 on a processor without bfloat16 instructions: `linear_in_float32`, one panel of the weight at a time. Most
  desktop processors lack these instructions. PyTorch then emulates the product at a sixth to an eighth of the speed of
  float32 on the same processor (Zen 3, 256 rows: 8 and 61 GFLOP/s). Converting a panel to float32 takes as long as
  multiplying about ten rows by it, so fewer rows are left to PyTorch. Sums are in float32 either way.
- int8: the rows are rounded to 8 bits and multiplied as integers. Where csrc/gemm.h has a kernel it does this,
  otherwise csrc/int8.h together with PyTorch's integer product. Both give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.kernels.activation import Activation
from vl2.kernels.library import Library
from vl2.kernels.structures import BF16, INT8, MatrixC

MAX_DECODED_ROWS = 64  # the maximum number of requests in one decoding step
LEAST_ROWS = 8  # the fewest rows that are multiplied in float32
PANEL_BYTES = 4 << 20  # bytes of float32 weights in a panel, which fits into a core's caches
LANES = 16  # the fewest outputs that PyTorch's integer product supports
LINE = 32  # bfloat16 numbers in a cache line
GROUP = 32  # `matmul` pads the number of inputs to a multiple of this

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


def is_decode_step(x: Tensor) -> bool:
    """Return whether the rows are one of each of several requests, [B, 1, D], and not several of one, [1, S, D].

    Rows without a batch dimension, [N, D], count as rows of several requests.
    """
    return x.dim() < 3 or x.shape[-2] == 1


@cache
def has_bfloat16_products() -> bool:
    """Return whether this CPU has bfloat16 instructions and PyTorch has oneDNN, which uses them."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_better_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Return whether a bfloat16 product on this CPU is faster in float32; never with gradients."""
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
        and not has_bfloat16_products()
    )


def linear_in_float32(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return x times the transposed weight plus the bias, [..., N], in the dtype of x."""
    N, K = weight_NK.shape
    return matmul_panels(x, N, K, lambda first, last: weight_NK[first:last].float(), bias_N)


def matmul_panels(
    x: Tensor, N: int, K: int, panel: Callable[[int, int], Tensor], bias_N: Tensor | None, multiple: int = 1
) -> Tensor:
    """Return x times a transposed weight [N, K] plus the bias, [..., N], in the dtype of x.

    `panel(first, last)` returns the rows first : last of the weight in float32. `first` is a multiple of `multiple`.
    """
    x_MK = x.reshape(-1, K).float()
    out_MN = x.new_empty(len(x_MK), N)
    step = max(1, PANEL_BYTES // (4 * K) // multiple) * multiple
    for first in range(0, N, step):
        last = min(first + step, N)
        made = x_MK @ panel(first, last).mT
        out_MN[:, first:last] = made if bias_N is None else made.add_(bias_N[first:last])
    return out_MN.view(*x.shape[:-1], N)


@dataclass(frozen=True)
class Int8Rows:
    """Rows rounded to int8, each with a scale from its largest absolute value: x is approximately codes * scales."""

    codes_MK: Tensor  # int8
    scales_M: Tensor  # float32

    def __getitem__(self, rows: slice) -> Int8Rows:
        return Int8Rows(self.codes_MK[rows], self.scales_M[rows])


def round_rows(kernels: Library, x_MK: Tensor) -> Int8Rows:
    """Round bfloat16 rows to int8."""
    assert x_MK.dtype == torch.bfloat16, f"the kernels round bfloat16, got {x_MK.dtype}"
    (M, K), x_MK = x_MK.shape, x_MK.contiguous()
    rounded = Int8Rows(torch.empty(M, K, dtype=torch.int8), torch.empty(M))
    kernels.to_int8_rows(
        x_MK.data_ptr(), M, K, rounded.codes_MK.data_ptr(), rounded.scales_M.data_ptr(), torch.get_num_threads()
    )
    return rounded


def int8_linear(
    kernels: Library,
    x_MK: Tensor,
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    activation: Activation = Activation.NONE,
    residual_MN: Tensor | None = None,
) -> Tensor:
    """Return x times a transposed int8 weight plus a bias, [M, N]: as it is, with an activation, or plus `residual_MN`.

    The rows of x are rounded to 8 bits. The product is rounded to bfloat16 before the residual is added. All tensors
    are bfloat16 except the codes and their scales.
    """
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    by_kernel = multiply_many_rows(
        kernels, x_MK, codes_NK, scales_N, bias_N=bias_N, activation=activation, residual_MN=residual_MN
    )
    if by_kernel is not None:
        return by_kernel
    rounded, out_MN = round_rows(kernels, x_MK), x_MK.new_empty(len(x_MK), len(codes_NK))
    return int8_linear_rounded(
        kernels,
        rounded,
        codes_NK,
        scales_N,
        bias_N=bias_N,
        activation=activation,
        residual_MN=residual_MN,
        out_MN=out_MN,
    )


def int8_linear_rounded(
    kernels: Library,
    x: Int8Rows,
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    activation: Activation = Activation.NONE,
    residual_MN: Tensor | None = None,
    out_MN: Tensor,
) -> Tensor:
    """Write the result of `int8_linear` for rows that are already rounded into `out_MN`, and return it.

    It uses PyTorch's integer product.
    """
    (M, _), N, threads = x.codes_MK.shape, len(codes_NK), torch.get_num_threads()
    sums_MN = torch._int_mm(x.codes_MK, codes_NK.T)
    kernels.from_int32_sums(
        *(sums_MN.data_ptr(), M, N, x.scales_M.data_ptr(), scales_N.data_ptr()),
        *(None if bias_N is None else bias_N.data_ptr(), activation),
        *(None if residual_MN is None else residual_MN.data_ptr(), out_MN.data_ptr(), threads),
    )
    return out_MN


class RowsProductC(ctypes.Structure):
    _fields_ = [
        ("x", _POINTER),
        *((name, _INT) for name in ("rows", "inputs", "x_stride", "kind")),
        *((name, _POINTER) for name in ("weight", "column_scales", "bias")),
        *((name, _INT) for name in ("outputs", "activation")),
        *((name, _POINTER) for name in ("residual", "out")),
        ("out_stride", _INT),
    ]


def multiply_many_rows(
    kernels: Library,
    x_MK: Tensor,
    weight_NK: Tensor,
    scales_N: Tensor | None = None,
    *,
    bias_N: Tensor | None = None,
    activation: Activation = Activation.NONE,
    residual_MN: Tensor | None = None,
) -> Tensor | None:
    """Return x times a transposed weight plus a bias, [M, N]: as it is, with an activation, or plus `residual_MN`.

    All tensors are bfloat16 and contiguous in the last dimension; or the weight is int8 with a scale for each output,
    and the rows of x are rounded to 8 bits. The product is rounded to bfloat16 before the residual is added. The row
    stride of the result may exceed N. Return None if the kernel does not support the shape, or if the processor has
    neither AVX-512 nor the matrix extensions of NEON.
    """
    (M, K), N = x_MK.shape, len(weight_NK)
    assert x_MK.dtype == torch.bfloat16, f"the kernels take bfloat16, got {x_MK.dtype}"
    assert (weight_NK.dtype == torch.int8) == (scales_N is not None), "int8 alone has scales"
    # Start every row on a cache line: a store that crosses two lines costs two writes.
    out_MN = x_MK.new_empty(M, -(-N // LINE) * LINE)[:, :N]
    scales_at, bias_at, residual_at = (None if t is None else t.data_ptr() for t in (scales_N, bias_N, residual_MN))
    product = RowsProductC(
        *(x_MK.data_ptr(), M, K, x_MK.stride(0), BF16 if scales_N is None else INT8),
        *(weight_NK.data_ptr(), scales_at, bias_at, N, activation, residual_at, out_MN.data_ptr(), out_MN.stride(0)),
    )
    is_done = kernels.multiply_many_rows(ctypes.byref(product), torch.get_num_threads())
    return out_MN if is_done else None


def matmul(kernels: Library, weight: MatrixC, x_MK: Tensor) -> Tensor:
    """Return x times the transposed weight, float32 [M, N]. The bits of a row do not depend on the other rows.

    x is bfloat16 or float32. A float32 number is split into the nearest bfloat16 number and the remainder in bfloat16,
    so that 16 bits of it are used.
    """
    if x_MK.dtype == torch.float32:
        high_MK = x_MK.to(torch.bfloat16)
        low_MK = (x_MK - high_MK).to(torch.bfloat16)
        both = matmul(kernels, weight, torch.cat((high_MK, low_MK)))
        return both[: len(x_MK)] + both[len(x_MK) :]
    assert x_MK.dtype == torch.bfloat16, f"the kernels take bfloat16 and float32, got {x_MK.dtype}"
    padded_MK = F.pad(x_MK, (0, -x_MK.shape[1] % GROUP)).contiguous()
    out_MN = torch.empty(len(x_MK), weight.outputs, dtype=torch.float32)
    kernels.matmul(
        ctypes.byref(weight),
        len(x_MK),
        padded_MK.data_ptr(),
        padded_MK.shape[1],
        out_MN.data_ptr(),
        torch.get_num_threads(),
    )
    return out_MN
