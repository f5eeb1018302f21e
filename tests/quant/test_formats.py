"""The quantized forms: their layout, their error, and the layers that hold them."""

from __future__ import annotations

import pytest
import torch

from vl2.errors import UserError
from vl2.quant.formats import (
    GROUP,
    KINDS,
    PANEL,
    Kind,
    dequantize,
    dequantize_int4_plainly,
    int4_plainly,
    pack,
    quantize,
    storage,
    unpack,
    weight_bytes,
)

SHAPES = [(16, 32), (33, 70), (64, 128), (3, 24, 48), (2, 2, 20, 36)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_weight_comes_back_close_and_takes_the_memory_that_is_said(kind: Kind, shape: tuple[int, ...]) -> None:
    weight = normal(*shape)
    quantized = quantize(weight, kind)
    codes, scales = storage(kind, shape)
    assert (tuple(quantized.codes.shape), quantized.codes.dtype) == (codes.shape, codes.dtype)
    assert (tuple(quantized.scales.shape), quantized.scales.dtype) == (scales.shape, scales.dtype)
    assert weight_bytes(kind, shape) == quantized.codes.nbytes + quantized.scales.nbytes
    back = dequantize(quantized, shape[-2], shape[-1], torch.float32)
    assert back.shape == weight.shape
    assert (back - weight).norm() < {"int8": 0.01, "int4": 0.095}[kind] * weight.norm()


@pytest.mark.parametrize("shape", [(16, 32), (33, 70), (48, 96)], ids=str)
def test_kernels_and_pytorch_make_int4_whole_alike(shape: tuple[int, int]) -> None:
    quantized = quantize(normal(*shape), "int4")
    plain = dequantize_int4_plainly(quantized, *shape)
    assert torch.equal(dequantize(quantized, *shape, torch.float32), plain)
    assert torch.equal(dequantize(quantized, *shape, torch.bfloat16), plain.to(torch.bfloat16))
    for first, last in ((0, 16), (16, shape[0])):
        if first < last:
            part = dequantize(quantized.rows(first, last), last - first, shape[1], torch.float32)
            assert torch.equal(part, plain[first:last])


def test_codes_lie_where_the_layout_says() -> None:
    codes = torch.randint(0, 16, (3 * PANEL, 2 * GROUP), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = pack(codes)
    assert blocks.shape == (3, 2, PANEL * GROUP // 2)
    words = blocks.numpy().view("<u2")
    for panel, group, word, j in ((0, 0, 0, 0), (1, 1, 1, 3), (2, 0, 77, 2), (2, 1, 127, 1)):
        row, place = word % 32 // 2, 2 * (4 * (word // 32) + j) + word % 2
        assert words[panel, group, word] >> 4 * j & 15 == codes[panel * PANEL + row, group * GROUP + place]
    assert torch.equal(unpack(blocks), codes)


def test_int4_cuts_off_the_largest_weight_where_that_serves_the_others() -> None:
    weight = normal(64, 256)
    plain = weight.unflatten(1, (-1, GROUP))
    scale = plain.abs().amax(-1, keepdim=True) / 7
    rounded = ((plain / scale).round() * scale).flatten(1)
    chosen = dequantize(quantize(weight, "int4"), 64, 256, torch.float32)
    assert (chosen - weight).norm() < 0.95 * (rounded - weight).norm()


def test_int8_reaches_the_largest_weight_of_a_row_exactly() -> None:
    weight = normal(8, 40)
    back = dequantize(quantize(weight, "int8"), 8, 40, torch.float32)
    largest = weight.abs().argmax(dim=1, keepdim=True)
    torch.testing.assert_close(back.gather(1, largest), weight.gather(1, largest), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_stay_zeros(kind: Kind) -> None:
    weight = normal(32, 64)
    weight[3] = 0
    back = dequantize(quantize(weight, kind), 32, 64, torch.float32)
    assert torch.equal(back[3], torch.zeros(64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_quantized_matrix_by_matrix(kind: Kind) -> None:
    weight = normal(3, 20, 40)
    stacked = quantize(weight, kind)
    for index, matrix in enumerate(weight):
        alone = quantize(matrix, kind)
        assert torch.equal(stacked.codes[index], alone.codes)
        assert torch.equal(stacked.scales[index], alone.scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e4])
def test_kernels_round_as_pytorch_does(size: float, dtype: torch.dtype) -> None:
    weight = (normal(40, 100) * size).to(dtype)
    quantized, (codes, scales) = quantize(weight, "int4"), int4_plainly(weight)
    # Where two scales are equally good to the last bit, either may be taken.
    assert (quantized.scales == scales).float().mean() > 0.99
    assert (quantized.codes == codes).float().mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_what_no_code_can_stand_for_is_refused(kind: Kind, value: float) -> None:
    weight = torch.randn(40, 70)
    weight[17, 66] = value
    if kind == "int8" and value == 3e38:  # a float32 scale holds it
        assert quantize(weight, kind).scales.isfinite().all()
        return
    for made in (weight, weight.to(torch.bfloat16)):
        with pytest.raises(UserError, match=f"too large for {kind}, cannot be quantized"):
            quantize(made, kind)
        if kind == "int4":
            assert not int4_plainly(made)[1].isfinite().all()
