"""What the tests of the prefill kernels share: where they run, and how near to the plain way they must come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vl2.kernels import load_kernels
from vl2.kernels.build import supported_levels

_kernels_here = load_kernels()
needs_kernels = pytest.mark.skipif(_kernels_here is None, reason="no kernels: neither built nor a compiler")
needs_attention = pytest.mark.skipif(
    _kernels_here is None or not _kernels_here.has_bfloat16_products, reason="the kernel is for AVX-512 with bfloat16"
)
ROW_LEVELS = [level.name for level in supported_levels() if level.has_bfloat16_products]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def assert_as_near_as_bfloat16(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """No farther from the float32 result than the plain way, but for one rounding."""
    allowed = (plain.float() - exact).abs().max() + exact.abs().max() * 2**-8
    assert (ours.float() - exact).abs().max() <= allowed
