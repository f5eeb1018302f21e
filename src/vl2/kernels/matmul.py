"""The kernels' product of rows with a bfloat16 or quantized weight, for PyTorch tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.kernels.library import Library
from vl2.kernels.structures import MatrixC

GROUP = 32  # rows of inputs are filled up to a multiple of this


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
