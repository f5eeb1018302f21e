"""The products of every level of instructions that this machine has, against PyTorch's on the dequantized weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vl2.errors import UserError
from vl2.kernels.build import supported_levels
from vl2.kernels.library import Library, kernels_of_level
from vl2.kernels.matmul import matmul
from vl2.kernels.structures import BF16, INT4, INT8, MatrixC
from vl2.quant.formats import KINDS, Kind, dequantize, quantize

# 70 inputs end inside a group, 33 outputs inside a panel; 20 rows are more than any tile.
SHAPES = [(64, 128), (33, 70), (130, 4), (80, 192)]
ROWS = (1, 2, 3, 4, 5, 9, 20)
# Levels that multiply the codes with integers.
WITH_INTEGERS = {
    "int4": ("avx2", "avx512", "amx", "neon", "neon_dotprod", "neon_bf16"),
    "int8": ("avx2", "avx512", "amx", "neon_dotprod", "neon_bf16"),
}


@pytest.fixture(scope="module", params=[level.name for level in supported_levels()])
def kernels(request: pytest.FixtureRequest) -> Library:
    found = kernels_of_level(request.param)
    if found is None:
        pytest.skip("no compiler here, and no kernels were built before")
    return found


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def held(weight: torch.Tensor, kind: Kind | None) -> tuple[MatrixC, torch.Tensor, list[torch.Tensor]]:
    """Return a weight as the kernels take it, the float32 weight that it stands for, and what must be kept alive."""
    N, K = weight.shape
    if kind is None:
        return MatrixC(BF16, N, K, weight.data_ptr(), None), weight.float(), [weight]
    quantized = quantize(weight, kind)
    matrix = MatrixC(INT8 if kind == "int8" else INT4, N, K, quantized.codes.data_ptr(), quantized.scales.data_ptr())
    return matrix, dequantize(quantized, N, K, torch.float32), [quantized.codes, quantized.scales]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_that_of_the_weights_it_stands_for(
    kernels: Library, shape: tuple[int, int], kind: Kind | None
) -> None:
    matrix, weight, _kept = held(normal(*shape), kind)
    for rows in ROWS:
        x = normal(rows, shape[1], seed=1)
        # Products of bfloat16 numbers are exact in float32; only the order of the sum differs. With some levels
        # activations become integers of up to 16384 at least: rounded by half of one.
        is_whole = kernels.level in WITH_INTEGERS.get(kind or "", ())
        rounding = x.float().abs().max() / 32768 if is_whole else 0
        atol = 1e-4 + 4 * float(rounding * weight.norm(dim=1).max())
        torch.testing.assert_close(matmul(kernels, matrix, x), x.float() @ weight.T, rtol=1e-5, atol=atol)


def exact_integers(x_MK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 16-bit integers [M, G, group] and a power of two [M, G, 1] for each group of inputs, both in float64.

    The power is the least for which a group's integers are at most 32,512, which is 127 * 256.
    """
    x = F.pad(x_MK.double(), (0, -x_MK.shape[1] % group)).view(len(x_MK), -1, group)
    largest = x.abs().amax(-1, keepdim=True)
    powers = 2.0 ** torch.arange(-60, 60, dtype=torch.float64)
    fits = largest / powers <= 32512
    power = powers[fits.int().argmax(-1)].unsqueeze(-1)
    return (x / power).round(), power


@pytest.mark.parametrize("shape", [*SHAPES, (16, 9000)], ids=str)  # 32-bit sums of 9,000 products could overflow
def test_int8_rounds_once_a_row_of_exact_integer_products(kernels: Library, shape: tuple[int, int]) -> None:
    if kernels.level == "portable":
        pytest.skip("the portable kernels multiply floats")
    (N, K), quantized = shape, quantize(normal(*shape), "int8")
    for codes in (quantized.codes, torch.full_like(quantized.codes, 127)):
        matrix = MatrixC(INT8, N, K, codes.data_ptr(), quantized.scales.data_ptr())
        for x in (normal(9, K, seed=1), torch.full((9, K), 3.96875).to(torch.bfloat16)):
            integers, power = exact_integers(x, K)
            sums = (integers[:, 0] @ codes.double().T).float()  # exact in float64, rounded once here
            wanted = sums * quantized.scales * power[:, 0].float()
            assert torch.equal(matmul(kernels, matrix, x), wanted)


def test_with_int4_a_large_activation_costs_those_of_its_group_alone(kernels: Library) -> None:
    matrix, weight, _kept = held(normal(64, 128), "int4")
    x = normal(5, 128, seed=1)
    x[:, 40] = 0  # the second of four groups of 32
    alone = matmul(kernels, matrix, x)
    x[:, 40] = 4096
    difference = matmul(kernels, matrix, x) - alone - 4096 * weight[:, 40]
    # The group's other numbers are rounded to halves of 4096 / 16384 now; all others are what they were.
    torch.testing.assert_close(difference, torch.zeros_like(difference), atol=2.0, rtol=0)
    x[:, 32:64] = 0
    rest = matmul(kernels, matrix, x)
    torch.testing.assert_close(rest, x.float() @ weight.T, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    kernels: Library, shape: tuple[int, int], kind: Kind | None
) -> None:
    matrix, _, _kept = held(normal(*shape), kind)
    x = normal(20, shape[1], seed=1)
    whole = matmul(kernels, matrix, x)
    for rows in ROWS:
        for first in (0, 20 - rows):
            assert torch.equal(matmul(kernels, matrix, x[first : first + rows]), whole[first : first + rows])


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_float32_inputs_keep_sixteen_bits(kernels: Library, kind: Kind | None) -> None:
    matrix, weight, _kept = held(normal(64, 128), kind)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(matmul(kernels, matrix, x), x @ weight.T, rtol=1e-4, atol=2e-3)


def test_more_threads_give_the_same_bits(kernels: Library) -> None:
    matrix, _, _kept = held(normal(640, 128), "int4")
    x, before = normal(3, 128, seed=1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = matmul(kernels, matrix, x)
        torch.set_num_threads(3)
        assert torch.equal(matmul(kernels, matrix, x), alone)
    finally:
        torch.set_num_threads(before)


def test_a_level_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"VL2_KERNELS must be one of off, .*portable on this machine, got avx3"):
        kernels_of_level("avx3")


def test_without_kernels_there_are_none() -> None:
    assert kernels_of_level("off") is None


def test_activations_that_are_not_finite_or_nothing_stay_so(kernels: Library) -> None:
    for kind in (None, *KINDS):
        matrix, _, _kept = held(normal(33, 70), kind)
        x = normal(3, 70, seed=1)
        x[1], x[2, 5] = 0, float("nan")
        found = matmul(kernels, matrix, x)
        assert found[0].isfinite().all()
        assert not found[1].any()
        assert found[2].isnan().all()
