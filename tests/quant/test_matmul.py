"""Products with quantized weights: every way gives that of the weights they stand for, within what it rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.configs import small_model
from vl2.kernels import matmul
from vl2.kernels.library import VARIABLE
from vl2.kernels.matmul import MAX_DECODED_ROWS
from vl2.kernels.prefill_ops import has_row_products
from vl2.model.attention import AttentionMask
from vl2.model.moe import Experts
from vl2.quant import quantized_matmul
from vl2.quant.formats import KINDS, PANEL, Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model
from vl2.quant.quantized_matmul import FEW_PREFILL_ROWS, FEW_ROWS, PANEL_ROWS

DTYPES = (torch.float32, torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["with kernels", "without kernels"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without kernels":
        monkeypatch.setenv(VARIABLE, "off")


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS + 8, MAX_DECODED_ROWS])
def test_a_layer_gives_the_product_of_the_weights_it_stands_for(kind: Kind, rows: int, dtype: torch.dtype) -> None:
    plain = nn.Linear(72, 48).requires_grad_(False)
    plain.weight.copy_(normal(48, 72))
    layer = QuantizedLinear.like(plain, kind)
    layer.quantize_from(plain.weight)
    layer.to(dtype)  # the scales stay as they are
    x = normal(2, rows, 72, seed=1).to(dtype)
    got, expected = layer(x), F.linear(x.float(), layer.dequantize(torch.float32), plain.bias.float())
    assert got.dtype == dtype
    assert got.shape == (2, rows, 48)
    # Many rows are rounded to 8 bits with int8 weights, elsewhere to bfloat16 at most.
    assert (got.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("kind", "dtype", "kernels", "has_int8", "expected"),
    [
        (None, torch.bfloat16, None, True, torch.bfloat16),
        ("int8", torch.bfloat16, None, True, torch.int8),
        ("int8", torch.float32, None, True, torch.int8),
        ("int8", torch.float32, None, False, torch.float32),
        ("int8", torch.bfloat16, False, False, torch.float32),
        ("int4", torch.bfloat16, True, True, torch.bfloat16),
        ("int4", torch.bfloat16, False, True, torch.float32),
        ("int4", torch.float32, None, True, torch.float32),
    ],
)
def test_the_type_of_many_rows_follows_the_weight_and_the_instructions(
    kind: Kind | None,
    dtype: torch.dtype,
    kernels: bool | None,
    has_int8: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`kernels`: None without any, else whether theirs have instructions for bfloat16."""
    library = None if kernels is None else SimpleNamespace(has_bfloat16_products=kernels, has_row_products=False)
    monkeypatch.setattr(quantized_matmul, "load_kernels", lambda: library)
    monkeypatch.setattr(quantized_matmul, "has_int8_products", lambda: has_int8)
    monkeypatch.setattr(quantized_matmul, "has_bfloat16_products", lambda: True)
    assert quantized_matmul.matmul_dtype(kind, dtype, torch.device("cpu")) == expected
    assert quantized_matmul.matmul_dtype(kind, dtype, torch.device("meta")) == dtype


def test_plain_bfloat16_is_multiplied_in_float32_without_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_matmul, "has_bfloat16_products", lambda: False)
    assert quantized_matmul.matmul_dtype(None, torch.bfloat16, torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_requests_that_are_decoded_together_have_the_bits_of_each_alone(kind: Kind) -> None:
    layer = QuantizedLinear.like(nn.Linear(72, 48).requires_grad_(False), kind)
    layer.quantize_from(normal(48, 72))
    layer.to(torch.bfloat16)
    x_B1K = normal(FEW_ROWS, 1, 72, seed=1).to(torch.bfloat16)
    together, alone = layer(x_B1K), torch.cat([layer(row) for row in x_B1K.split(1)])
    assert torch.equal(together, alone)


@pytest.mark.skipif(not has_row_products(), reason="no kernels for many rows")
@pytest.mark.parametrize(("rows", "is_rounded"), [(FEW_PREFILL_ROWS, False), (FEW_PREFILL_ROWS + 1, True)])
def test_with_kernels_for_many_rows_more_than_a_few_rows_of_one_prompt_are_rounded(rows: int, is_rounded: bool) -> None:
    layer = QuantizedLinear.like(nn.Linear(72, 48, bias=False).requires_grad_(False), "int8")
    layer.quantize_from(normal(48, 72))
    layer.to(torch.bfloat16)
    x_1SK = normal(1, rows, 72, seed=1).to(torch.bfloat16)
    one_by_one = layer(x_1SK.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(layer(x_1SK), one_by_one) != is_rounded
    assert (layer(x_1SK).float() - one_by_one.float()).norm() < 0.02 * one_by_one.float().norm()


@pytest.mark.parametrize("panel_bytes", [1, 4 * 72 * 20, 4 << 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_without_instructions_panels_give_the_product_unrounded(
    kind: Kind, dtype: torch.dtype, panel_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As little of the weight at a time as can be, one panel and a part of the next, and all of it."""
    monkeypatch.setattr(quantized_matmul, "has_int8_products", lambda: False)
    monkeypatch.setattr(quantized_matmul, "int8_kernels", lambda *_: None)
    monkeypatch.setattr(quantized_matmul, "_has_instructions", lambda kernels, kind: False)
    monkeypatch.setattr(matmul, "PANEL_BYTES", panel_bytes)
    plain = nn.Linear(72, 41).requires_grad_(False)
    layer = QuantizedLinear.like(plain, kind)
    layer.quantize_from(plain.weight)
    layer.to(dtype)
    x = normal(2, PANEL_ROWS, 72, seed=1).to(dtype)
    got, expected = layer(x), F.linear(x.float(), layer.dequantize(torch.float32), plain.bias.to(dtype).float())
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


class LargestMade(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_without_kernels_no_weight_is_made_whole(
    kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In numbers whose products and sums are exact, so that parts can have no other bits than the whole."""
    monkeypatch.setenv(VARIABLE, "off")
    most = {"int8": 127, "int4": 7}[kind]
    K, N = 64, 200
    plain = nn.Linear(K, N).requires_grad_(False)
    plain.weight.copy_(normal(N, K).mul(most / 4).round().clamp(-most, most))
    plain.weight[:, ::32] = -most - (kind == "int4")  # the scale is 1
    plain.bias.copy_(normal(N, seed=1).round())
    layer = QuantizedLinear.like(plain, kind)
    layer.quantize_from(plain.weight)
    layer.to(dtype)
    x = normal(2, 3, K, seed=2).sign().to(dtype)
    expected = F.linear(x, layer.dequantize(dtype), layer.bias)
    assert torch.equal(layer.dequantize(torch.float32), plain.weight)
    monkeypatch.setattr(quantized_matmul, "MADE", 3 * PANEL * K)
    with LargestMade() as largest:
        got = layer(x)
    assert torch.equal(got, expected)
    assert largest.numbers <= 3 * PANEL * K


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_experts_give_what_their_whole_weights_give(kind: Kind, dtype: torch.dtype) -> None:
    plain = Experts(4, 64, 48).requires_grad_(False)
    plain.gate_up_proj.copy_(normal(4, 96, 64))
    plain.down_proj.copy_(normal(4, 64, 48, seed=1))
    experts = QuantizedExperts.like(plain, kind)
    for expert in range(4):
        experts.quantize_from("gate_up", expert, plain.gate_up_proj[expert])
        experts.quantize_from("down", expert, plain.down_proj[expert])
        plain.gate_up_proj[expert] = experts.dequantize("gate_up", expert, torch.float32)
        plain.down_proj[expert] = experts.dequantize("down", expert, torch.float32)
    counts = torch.tensor([3, 0, FEW_ROWS + 3, 1])
    x = normal(int(counts.sum()), 64, seed=2).to(dtype)
    with torch.no_grad():
        got, expected = experts(x, counts), plain(x.float(), counts)
    assert got.dtype == dtype
    assert (got.float() - expected).norm() < 0.02 * expected.norm()
    assert experts(x[:0], torch.zeros(4, dtype=torch.int64)).shape == (0, 64)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_quantized_model_answers_nearly_as_the_plain_one(name: SchemeName) -> None:
    model = small_model("tiny")
    ids = torch.randint(5, 100, (1, 60), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(60).unsqueeze(0)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            hidden = model.language.model(model.language.embed(ids), positions, AttentionMask.of_rows(None))
            return model.language.logits(hidden.states_BSD)

    plain = logits()
    quantize_model(model, SCHEMES[name])
    # Random weights do not forgive what trained ones do: an expert chosen otherwise changes all that follows.
    assert (logits() - plain).norm() < {"int8": 0.2, "int4": 0.6}[name] * plain.norm()
