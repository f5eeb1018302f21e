"""Products of many rows are those of float64, rounded; of int8 see test_int8.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vl2.kernels import load_kernels
from vl2.kernels.activation import Activation, activate
from vl2.kernels.library import Library
from vl2.kernels.matmul import multiply_many_rows
from vl2.kernels.prefill_ops import has_row_products

SHAPES = [
    (1000, 160, 1280),  # rows of several chunks
    (729, 1152, 96),
    (40, 48, 72),  # sixteen outputs and eight channels too many for whole tiles
    (1, 16, 8),
    (33, 32, 4304),  # rows of a weight that begin in the middle of a line
]


@pytest.fixture(scope="module")
def kernels() -> Library:
    found = load_kernels()
    if found is None or not has_row_products():
        pytest.skip("no kernels for many rows")
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
def test_products_are_those_of_float64(kernels: Library, M: int, N: int, K: int, activation: Activation) -> None:
    x_MK, weight_NK, bias_N, residual_MN = draw(M, K), draw(N, K, seed=1) * K**-0.5, draw(N, seed=2), draw(M, N, seed=3)
    for bias, residual in ((None, None), (bias_N, None), (bias_N, residual_MN)):
        got = multiply_many_rows(kernels, x_MK, weight_NK, bias_N=bias, activation=activation, residual_MN=residual)
        assert got is not None
        assert got.shape == (M, N)
        exact = x_MK.double() @ weight_NK.double().T + (0 if bias is None else bias.double())
        exact = activate(exact, activation)
        # Rounded once, with an activation or a sum twice; what both say of a number near zero differs by more of it.
        steps = 1 + bool(activation) + (residual is not None)
        largest = exact.abs() if residual is None else exact.abs() + residual.abs()
        exact = exact if residual is None else exact + residual.double()
        assert ((got.double() - exact).abs() <= steps * 2**-8 * largest + 1e-3).all()


def test_a_row_has_the_same_bits_whatever_is_beside_it_and_with_any_number_of_threads(kernels: Library) -> None:
    x_MK, weight_NK = draw(500, 1280), draw(96, 1280, seed=1)
    together = multiply_many_rows(kernels, x_MK, weight_NK)
    parts = [multiply_many_rows(kernels, part, weight_NK) for part in x_MK.split(37)]
    assert together is not None
    assert torch.equal(together, torch.cat([part for part in parts if part is not None]))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            again = multiply_many_rows(kernels, x_MK, weight_NK)
            assert again is not None
            assert torch.equal(together, again)
    finally:
        torch.set_num_threads(before)


def test_rows_may_lie_apart(kernels: Library) -> None:
    wide_MK, weight_NK = draw(50, 200), draw(48, 72, seed=1)
    apart, close = wide_MK[:, 32:104], wide_MK[:, 32:104].contiguous()
    one, two = (multiply_many_rows(kernels, x_MK, weight_NK) for x_MK in (apart, close))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)


def test_outputs_that_fill_no_block_are_not_for_the_kernel(kernels: Library) -> None:
    assert multiply_many_rows(kernels, draw(40, 64), draw(41, 64, seed=1)) is None
