"""Rows of bfloat16 times a whole weight in tile registers (csrc/gemm.h)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vl2.kernels.library import Library
from vl2.kernels.structures import BF16, INT8

LINE = 32  # bfloat16 numbers of a line of the cache

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


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
