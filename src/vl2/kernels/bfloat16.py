"""Products of bfloat16 weights on a CPU without instructions for them: in float32, a panel of the weight at a time.

Most desktop processors have none. PyTorch then emulates bfloat16 products, at a sixth to an eighth of the speed at
which the same processor multiplies float32 (Zen 3, 256 rows: 8 and 61 GFLOP/s). Making a panel float32 takes as long as
multiplying some ten rows by it, so a few rows are left to PyTorch. Sums are in float32 either way.

M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LEAST_ROWS = 8
PANEL_BYTES = 4 << 20  # of float32 weights at a time: what a core's caches hold


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
