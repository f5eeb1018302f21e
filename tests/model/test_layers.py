"""The norm with its written-out gradient against the norm step by step."""

from __future__ import annotations

import pytest
import torch

from vl2.model.layers import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_and_its_gradients_are_those_of_the_plain_expression(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, upstream = (torch.randn(shape, generator=generator) for shape in ((2, 5, 16), (16,), (2, 5, 16)))
    norm = RMSNorm(16, 1e-6).to(dtype)
    results = []
    for is_plain in (False, True):
        narrow = x.to(dtype).requires_grad_()
        norm.weight = torch.nn.Parameter(weight.to(dtype))
        if is_plain:
            wide = narrow.float()
            normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + norm.eps)
            out = norm.weight * normed.to(dtype)
        else:
            out = norm(narrow)
        out.backward(upstream.to(dtype))
        results.append((out.detach(), narrow.grad, norm.weight.grad))
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    for ours, plain in zip(*results, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, plain, **tolerance)
