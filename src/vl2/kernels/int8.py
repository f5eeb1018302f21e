"""Matmul in integers: bfloat16 rows rounded to 8 bits, int8 weights.

With tile registers by csrc/gemm.h, else by csrc/int8.h around PyTorch's; both give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.kernels.library import Library
from vl2.kernels.tiles import multiply_rows_in_tiles

LANES = 16  # the kernel takes no narrower result


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
