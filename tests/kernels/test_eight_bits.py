"""Rows rounded to 8 bits by the kernels, and the sums of their products, are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vl2.kernels import load_kernels
from vl2.kernels.eight_bits import multiply_rounded, round_rows
from vl2.kernels.library import Library
from vl2.quant.formats import quantise
from vl2.quant.products import multiply_in_8_bits

SHAPES = [(729, 1152, 1152), (40, 48, 72), (33, 17, 9), (1, 100, 16)]


@pytest.fixture(scope="module")
def kernels() -> Library:
    found = load_kernels()
    if found is None:
        pytest.skip("no kernels: neither built nor a compiler")
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_rows_are_rounded_to_the_nearest_code(kernels: Library, M: int, N: int, K: int) -> None:
    x_MK = draw(M, K) * torch.logspace(-6, 6, M)[:, None].to(torch.bfloat16)
    x_MK[0] = 0
    rounded = round_rows(kernels, x_MK)
    back_MK = rounded.codes_MK * rounded.scales_M[:, None].double()
    # Half a step, and what float32 rounds away of it.
    assert ((back_MK - x_MK).abs() <= rounded.scales_M[:, None] * (0.5 + 1e-4)).all()
    assert torch.equal(rounded.codes_MK.abs().amax(1)[1:], torch.full((M - 1,), 127, dtype=torch.int8))
    assert not rounded.codes_MK[0].any()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_products_are_those_of_the_plain_way(kernels: Library, M: int, N: int, K: int, gelu: bool) -> None:
    x_MK, bias_N = draw(M, K), draw(N, seed=2)
    weight = quantise(draw(N, K, seed=1), "int8")
    got = multiply_rounded(kernels, round_rows(kernels, x_MK), weight.codes, weight.scales, bias_N=bias_N, gelu=gelu)
    plain = multiply_in_8_bits(x_MK, weight) + bias_N
    if gelu:
        plain = F.gelu(plain.to(torch.bfloat16), approximate="tanh").float()
    # A code in a thousand falls on the other side of a half, and bfloat16 rounds the result.
    assert (got.float() - plain).norm() < 4e-3 * plain.norm()


def test_each_row_has_the_same_bits_whatever_is_beside_it(kernels: Library) -> None:
    x_MK, weight = draw(50, 96), quantise(draw(64, 96, seed=1), "int8")
    together = multiply_rounded(kernels, round_rows(kernels, x_MK), weight.codes, weight.scales)
    apart = torch.cat(
        [multiply_rounded(kernels, round_rows(kernels, row), weight.codes, weight.scales) for row in x_MK.split(7)]
    )
    assert torch.equal(together, apart)
