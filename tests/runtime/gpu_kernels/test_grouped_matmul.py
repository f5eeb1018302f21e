"""The kernel's products equal those of the weights that the codes stand for, computed apart from it in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.runtime.gpu_kernels.interpreted import DEVICE, bfloat16_products  # noqa: F401
from vl2.quant.formats import KINDS, Kind, Quantized, dequantize, quantize
from vl2.runtime.gpu_kernels.grouped_matmul import WeightKind, Weights, block_sizes, check_product, multiply

# A sum of 16-bit products in float32 is rounded once to the type of the rows: to nearest, which is half of this. The
# interpreter cuts bfloat16 off instead.
STEP = {torch.float16: 2**-11, torch.bfloat16: 2**-7}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_rounded_once(found: Tensor, exact: Tensor, largest: Tensor) -> None:
    """Compare with exact products. `largest` is the sum of the magnitudes of their terms, which float32 sums round."""
    error = (found.double() - exact).abs()
    assert bool((error <= STEP[found.dtype] * exact.abs() + 1e-6 * largest).all()), float(error.max())


def exact_product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x, weight = x_MK.double(), weight_NK.double()
    bias = torch.zeros(len(weight_NK)) if bias_N is None else bias_N.double()
    return x @ weight.T + bias, x.abs() @ weight.abs().T + bias.abs()


def on_device(weights: Weights) -> Weights:
    scales = None if weights.scales is None else weights.scales.to(DEVICE)
    return Weights(weights.kind, weights.codes.to(DEVICE), scales, weights.num_outputs)


# Sides that are whole blocks, and sides that are not: of panels of 16 outputs, groups of 32 inputs, blocks of 64.
@pytest.mark.parametrize(("N", "K"), [(64, 128), (40, 72)])
@pytest.mark.parametrize("M", [1, 5, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_gives_the_products_of_its_weights(kind: Kind, dtype: torch.dtype, M: int, N: int, K: int) -> None:
    quantized, x_MK = quantize(normal(N, K, seed=1), kind), normal(M, K, seed=2).to(dtype)
    bias_N = normal(N, seed=3).to(dtype) if M == 5 else None
    weights = on_device(Weights.of_layer(quantized, N))
    found = multiply(x_MK.to(DEVICE), weights, bias_N=None if bias_N is None else bias_N.to(DEVICE)).cpu()
    assert found.dtype == dtype
    assert_rounded_once(found, *exact_product(x_MK, dequantize(quantized, N, K, torch.float32), bias_N))


def stacked(kind: WeightKind, weight_ENK: Tensor, dtype: torch.dtype) -> tuple[Weights, Tensor]:
    """Return the weights in a form, and the numbers that they stand for."""
    N, K = weight_ENK.shape[1:]
    if kind == "plain":
        return Weights(kind, weight_ENK.to(dtype), None, N), weight_ENK.to(dtype)
    quantized = quantize(weight_ENK, kind)
    exact = [
        dequantize(type(quantized)(kind, codes, scales), N, K, torch.float32)
        for codes, scales in zip(quantized.codes, quantized.scales, strict=True)
    ]
    return Weights(kind, quantized.codes, quantized.scales, N), torch.stack(exact)


@pytest.mark.parametrize("counts", [[0, 3, 0, 1], [20, 0, 45, 2]], ids=["few rows", "several blocks"])
@pytest.mark.parametrize("kind", ["int4", "int8", "plain"])
def test_each_row_is_multiplied_by_its_experts_weight(kind: WeightKind, counts: list[int]) -> None:
    N, K = 40, 72
    weights, exact_ENK = stacked(kind, normal(len(counts), N, K, seed=1), torch.float16)
    x_MK = normal(sum(counts), K, seed=2).to(torch.float16)
    found_MN = multiply(x_MK.to(DEVICE), on_device(weights), torch.tensor(counts, device=DEVICE)).cpu()
    rows = zip(found_MN.split(counts), x_MK.split(counts), exact_ENK, strict=True)
    for found, x, weight_NK in rows:
        assert_rounded_once(found, *exact_product(x, weight_NK))


@pytest.mark.parametrize("kind", ["int4", "int8", "plain"])
def test_a_row_has_the_same_bits_alone_and_among_others(kind: WeightKind) -> None:
    weights, _ = stacked(kind, normal(2, 64, 96, seed=1), torch.float16)
    weights, x_MK = on_device(weights), normal(12, 96, seed=2).to(DEVICE, torch.float16)
    together = multiply(x_MK, weights, torch.tensor([5, 7], device=DEVICE))
    for row in range(12):
        counts = torch.tensor([row < 5, row >= 5], device=DEVICE).long()
        assert torch.equal(multiply(x_MK[row : row + 1], weights, counts)[0], together[row])


def test_blocks_of_a_decoding_step_never_have_64_rows() -> None:
    for rows in range(1, 65):
        assert block_sizes("int4", rows, 1280, 1)[0] < 64
        assert block_sizes("int4", rows * 6, 1792, 64)[0] < 64


def test_no_rows_give_no_products() -> None:
    weights, _ = stacked("int4", normal(2, 40, 72, seed=1), torch.float16)
    x_MK = torch.empty(0, 72, dtype=torch.float16, device=DEVICE)
    assert multiply(x_MK, on_device(weights), torch.zeros(2, dtype=torch.int64, device=DEVICE)).shape == (0, 40)


def test_the_check_of_a_device_passes_and_notices_a_wrong_product(monkeypatch: pytest.MonkeyPatch) -> None:
    check_product(DEVICE)

    def of_other_rows(quantized: Quantized, N: int) -> Weights:
        return Weights(quantized.kind, quantized.codes.flip(0)[None], quantized.scales[None], N)

    monkeypatch.setattr(Weights, "of_layer", of_other_rows)
    with pytest.raises(ArithmeticError, match="int4"):
        check_product(DEVICE)
