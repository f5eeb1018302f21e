"""Matrix products on the CPU: rows of bfloat16 times a bfloat16, int8 or int4 weight.

M rows, K inputs, N outputs.

- bfloat16, with tile registers (AMX): `multiply_rows_in_tiles`, by csrc/gemm.h.
- bfloat16, on a processor without instructions for it: `linear_in_float32`, a panel of the weight at a time. Most
  desktop processors have none, and PyTorch then emulates the product at a sixth to an eighth of the speed at which the
  same processor multiplies float32 (Zen 3, 256 rows: 8 and 61 GFLOP/s). Converting a panel to float32 takes as long as
  multiplying some ten rows by it, so fewer rows are left to PyTorch. Sums are in float32 either way.
- int8: the rows are rounded to 8 bits and multiplied as integers, with tile registers by csrc/gemm.h and otherwise by
  csrc/int8.h around PyTorch's integer product. Both give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.kernels.library import Library
from vl2.kernels.structures import BF16, INT8, MatrixC

MAX_DECODED_ROWS = 64  # rows of different requests that may take a decoding step together
LEAST_ROWS = 8  # for a product in float32
PANEL_BYTES = 4 << 20  # of float32 weights at a time: what a core's caches hold
LANES = 16  # outputs: PyTorch's integer product takes no fewer
LINE = 32  # bfloat16 numbers in a cache line
GROUP = 32  # the number of inputs is padded to a multiple of this

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


def is_decode_step(x: Tensor) -> bool:
    """Whether these are one row of each of several requests, [B, 1, ...], and not many of one, [1, S, ...].

    Rows without a batch, [N, ...], are taken for those of several requests.
    """
    return x.dim() < 3 or x.shape[-2] == 1


@cache
def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for bfloat16 products, and PyTorch the library that uses them."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_better_in_float32(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
        and not has_bfloat16_products()
    )


def linear_in_float32(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return x times the weight's transpose, plus the bias, [..., N], in the type of x."""
    N, K = weight_NK.shape
    return matmul_panels(x, N, K, lambda first, last: weight_NK[first:last].float(), bias_N)


def matmul_panels(
    x: Tensor, N: int, K: int, panel: Callable[[int, int], Tensor], bias_N: Tensor | None, multiple: int = 1
) -> Tensor:
    """Return x times the transpose of a weight [N, K], plus the bias, [..., N], in the type of x.

    `panel` gives outputs first to last of the weight as float32; first is a multiple of `multiple`.
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
    """Rows, each rounded by its own largest number: x is about codes * scales."""

    codes_MK: Tensor  # int8
    scales_M: Tensor  # float32

    def __getitem__(self, rows: slice) -> Int8Rows:
        return Int8Rows(self.codes_MK[rows], self.scales_M[rows])


def round_rows(kernels: Library, x_MK: Tensor) -> Int8Rows:
    """Round bfloat16 rows."""
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
    gelu: bool = False,
    residual_MN: Tensor | None = None,
) -> Tensor:
    """Return x, its rows rounded to 8 bits, times an int8 weight's transpose plus a bias, or the tanh GELU of that.

    Or, rounded, that added to `residual`.

    All but the codes and their scales is bfloat16; the result is [M, N].
    """
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    in_tiles = multiply_rows_in_tiles(
        kernels, x_MK, codes_NK, scales_N, bias_N=bias_N, gelu=gelu, residual_MN=residual_MN
    )
    if in_tiles is not None:
        return in_tiles
    rounded, out_MN = round_rows(kernels, x_MK), x_MK.new_empty(len(x_MK), len(codes_NK))
    return int8_linear_rounded(
        kernels, rounded, codes_NK, scales_N, bias_N=bias_N, gelu=gelu, residual_MN=residual_MN, out_MN=out_MN
    )


def int8_linear_rounded(
    kernels: Library,
    x: Int8Rows,
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    gelu: bool = False,
    residual_MN: Tensor | None = None,
    out_MN: Tensor,
) -> Tensor:
    """Write the same of rows that are rounded already, by PyTorch's product, and return it."""
    (M, _), N, threads = x.codes_MK.shape, len(codes_NK), torch.get_num_threads()
    sums_MN = torch._int_mm(x.codes_MK, codes_NK.T)
    kernels.from_int32_sums(
        *(sums_MN.data_ptr(), M, N, x.scales_M.data_ptr(), scales_N.data_ptr()),
        *(None if bias_N is None else bias_N.data_ptr(), gelu),
        *(None if residual_MN is None else residual_MN.data_ptr(), out_MN.data_ptr(), threads),
    )
    return out_MN


class RowsProductC(ctypes.Structure):
    _fields_ = [
        ("x", _POINTER),
        *((name, _INT) for name in ("rows", "inputs", "x_stride", "kind")),
        *((name, _POINTER) for name in ("weight", "column_scales", "bias")),
        *((name, _INT) for name in ("outputs", "gelu")),
        *((name, _POINTER) for name in ("residual", "out")),
        ("out_stride", _INT),
    ]


def multiply_rows_in_tiles(
    kernels: Library,
    x_MK: Tensor,
    weight_NK: Tensor,
    scales_N: Tensor | None = None,
    *,
    bias_N: Tensor | None = None,
    gelu: bool = False,
    residual_MN: Tensor | None = None,
) -> Tensor | None:
    """Return x times a weight's transpose plus a bias, [M, N], or the tanh GELU of that; or that added to `residual`.

    All is bfloat16, the last dimension contiguous; or the weight is int8 with a scale for each output, and rows of x
    are rounded to 8 bits. The result is rounded before it is added to `residual`. Its rows may lie further apart
    than N. Returns None where the kernel does not do this shape, or the processor has no tile registers.
    """
    (M, K), N = x_MK.shape, len(weight_NK)
    assert x_MK.dtype == torch.bfloat16, f"the kernels take bfloat16, got {x_MK.dtype}"
    assert (weight_NK.dtype == torch.int8) == (scales_N is not None), "int8 alone has scales"
    # A row begins on a line of the cache: what lies across two of them is written twice.
    out_MN = x_MK.new_empty(M, -(-N // LINE) * LINE)[:, :N]
    scales_at, bias_at, residual_at = (None if t is None else t.data_ptr() for t in (scales_N, bias_N, residual_MN))
    product = RowsProductC(
        *(x_MK.data_ptr(), M, K, x_MK.stride(0), BF16 if scales_N is None else INT8),
        *(weight_NK.data_ptr(), scales_at, bias_at, N, gelu, residual_at, out_MN.data_ptr(), out_MN.stride(0)),
    )
    is_done = kernels.multiply_rows_in_tiles(ctypes.byref(product), torch.get_num_threads())
    return out_MN if is_done else None


def matmul(kernels: Library, weight: MatrixC, x_MK: Tensor) -> Tensor:
    """Return x times the weight's transpose, float32 [M, N]. Each row has the same bits whatever rows are beside it.

    Inputs are bfloat16. Float32 ones are split into the bfloat16 number nearest to each and what is left, so that 16
    bits of them take part.
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
