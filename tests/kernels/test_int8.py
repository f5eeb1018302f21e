"""Rows rounded to 8 bits by the kernels, and the sums of their products, are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from vl2.kernels import load_kernels
from vl2.kernels.activation import Activation, activate
from vl2.kernels.library import Library
from vl2.kernels.matmul import int8_linear, round_rows
from vl2.kernels.prefill_ops import has_row_products
from vl2.quant.formats import quantize
from vl2.quant.quantized_matmul import int8_matmul

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


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_products_are_those_of_the_plain_way(kernels: Library, M: int, N: int, K: int, activation: Activation) -> None:
    x_MK, bias_N = draw(M, K), draw(N, seed=2)
    weight = quantize(draw(N, K, seed=1), "int8")
    got = int8_linear(kernels, x_MK, weight.codes, weight.scales, bias_N=bias_N, activation=activation)
    plain = int8_matmul(x_MK, weight) + bias_N
    plain = activate(plain.to(torch.bfloat16), activation).float()
    # A code in a thousand falls on the other side of a half, and bfloat16 rounds the result.
    assert (got.float() - plain).norm() < 4e-3 * plain.norm()


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        (729, 1152, 1152),
        (40, 48, 72),  # sixteen outputs and eight channels too many for whole tiles
        (1, 16, 8),
        (33, 176, 4304),  # the encoder's widest rows
        (700, 64, 4304),  # more rows than are packed at a time
        (97, 4304, 64),  # a last block of sixteen
    ],
)
def test_with_and_without_the_kernel_for_many_rows_the_bits_are_the_same(
    kernels: Library, monkeypatch: pytest.MonkeyPatch, M: int, N: int, K: int, activation: Activation
) -> None:
    if not has_row_products():
        pytest.skip("no kernels for many rows")
    x_MK, bias_N, residual_MN = draw(M, K), draw(N, seed=2), draw(M, N, seed=3)
    weight = quantize(draw(N, K, seed=1) * 0.03, "int8")
    for bias, residual in ((bias_N, None), (None, None), (bias_N, residual_MN)):
        held = x_MK, weight.codes, weight.scales
        by_kernel = int8_linear(kernels, *held, bias_N=bias, activation=activation, residual_MN=residual)
        with monkeypatch.context() as without:
            without.setattr(kernels, "multiply_many_rows", lambda *_: 0)
            plain = int8_linear(kernels, *held, bias_N=bias, activation=activation, residual_MN=residual)
        assert torch.equal(by_kernel, plain)
        if residual is not None:
            assert torch.equal(plain, residual + int8_linear(kernels, *held, bias_N=bias, activation=activation))


@pytest.mark.parametrize("activation", list(Activation))
def test_activations_of_numbers_far_from_zero(kernels: Library, activation: Activation) -> None:
    wanted = torch.tensor([-3e4, -300.0, -20.0, -9.0, -4.0, -1.0, 0.0, 1.0, 4.0, 9.0, 300.0, 3e4])
    weight = quantize(torch.eye(16).to(torch.bfloat16), "int8")
    rows = (wanted[:, None] * torch.eye(16)[0]).to(torch.bfloat16)
    got = int8_linear(kernels, rows, weight.codes, weight.scales, activation=activation)[:, 0].float()
    torch.testing.assert_close(got, activate(wanted, activation), rtol=2**-7, atol=1e-6)


def test_each_row_has_the_same_bits_whatever_is_beside_it(kernels: Library) -> None:
    x_MK, weight = draw(50, 96), quantize(draw(64, 96, seed=1), "int8")
    together = int8_linear(kernels, x_MK, weight.codes, weight.scales)
    apart = torch.cat([int8_linear(kernels, row, weight.codes, weight.scales) for row in x_MK.split(7)])
    assert torch.equal(together, apart)
