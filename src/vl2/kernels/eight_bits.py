"""Products in whole numbers: bfloat16 rows rounded to 8 bits, int8 weights.

With tile registers by csrc/eight_bits_tiles.h, else by csrc/eight_bits.h around PyTorch's; both give the same bits.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.kernels.library import Library

LANES = 16  # the kernel takes no narrower result
LINE = 32  # numbers of a line of the cache


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class EightBitsC(ctypes.Structure):
    _fields_ = [
        ("x", _POINTER),
        *((name, _INT) for name in ("rows", "inputs", "x_stride")),
        *((name, _POINTER) for name in ("weight", "column_scales", "bias")),
        *((name, _INT) for name in ("outputs", "gelu")),
        *((name, _POINTER) for name in ("onto", "out")),
        ("out_stride", _INT),
    ]


@dataclass(frozen=True)
class RowsIn8Bits:
    """Rows, each rounded by its own largest number: x is about codes * scales."""

    codes_MK: Tensor  # int8
    scales_M: Tensor  # float32

    def __getitem__(self, rows: slice) -> RowsIn8Bits:
        return RowsIn8Bits(self.codes_MK[rows], self.scales_M[rows])


def round_rows(kernels: Library, x_MK: Tensor) -> RowsIn8Bits:
    """Round bfloat16 rows."""
    assert x_MK.dtype == torch.bfloat16, f"the kernels round bfloat16, got {x_MK.dtype}"
    (M, K), x_MK = x_MK.shape, x_MK.contiguous()
    rounded = RowsIn8Bits(torch.empty(M, K, dtype=torch.int8), torch.empty(M))
    kernels.to_int8_rows(
        x_MK.data_ptr(), M, K, rounded.codes_MK.data_ptr(), rounded.scales_M.data_ptr(), torch.get_num_threads()
    )
    return rounded


def multiply_rows(
    kernels: Library,
    x_MK: Tensor,
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    gelu: bool = False,
    onto_MN: Tensor | None = None,
) -> Tensor:
    """Return x, its rows rounded to 8 bits, times an int8 weight's transpose plus a bias, or the tanh GELU of that.

    Or, rounded, that added to `onto`.

    All but the codes and their scales is bfloat16; the result is [M, N].
    """
    assert x_MK.dtype == torch.bfloat16, f"the kernels round bfloat16, got {x_MK.dtype}"
    (M, K), N = x_MK.shape, len(codes_NK)
    if x_MK.stride(1) != 1:
        x_MK = x_MK.contiguous()
    # A row begins on a line of the cache: one that lies across two of them is written twice.
    out_MN = torch.empty(M, -(-N // LINE) * LINE, dtype=torch.bfloat16)[:, :N]
    bias_at, onto_at = (None if t is None else t.data_ptr() for t in (bias_N, onto_MN))
    product = EightBitsC(
        *(x_MK.data_ptr(), M, K, x_MK.stride(0), codes_NK.data_ptr(), scales_N.data_ptr(), bias_at),
        *(N, gelu, onto_at, out_MN.data_ptr(), out_MN.stride(0)),
    )
    if kernels.multiply_eight_bits(ctypes.byref(product), torch.get_num_threads()):
        return out_MN
    rounded, out_MN = round_rows(kernels, x_MK), out_MN.contiguous()
    return multiply_rounded(
        kernels, rounded, codes_NK, scales_N, bias_N=bias_N, gelu=gelu, onto_MN=onto_MN, out_MN=out_MN
    )


def multiply_rounded(
    kernels: Library,
    x: RowsIn8Bits,
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    bias_N: Tensor | None = None,
    gelu: bool = False,
    onto_MN: Tensor | None = None,
    out_MN: Tensor,
) -> Tensor:
    """Write the same of rows that are rounded already, by PyTorch's product, and return it."""
    (M, _), N, threads = x.codes_MK.shape, len(codes_NK), torch.get_num_threads()
    sums_MN = torch._int_mm(x.codes_MK, codes_NK.T)
    kernels.from_int32_sums(
        *(sums_MN.data_ptr(), M, N, x.scales_M.data_ptr(), scales_N.data_ptr()),
        *(None if bias_N is None else bias_N.data_ptr(), gelu),
        *(None if onto_MN is None else onto_MN.data_ptr(), out_MN.data_ptr(), threads),
    )
    return out_MN
