"""Products in float32 where a CPU has none in bfloat16: the same numbers, and nothing else about a layer changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vl2.model import float_linear
from vl2.model.float_linear import (
    LEAST_ROWS,
    FloatLinear,
    is_better_in_float32,
    is_plain_linear,
    linear_in_float32,
    use_float_linear,
)
from vl2.model.moe import grouped_matmul


@pytest.fixture(autouse=True)
def a_cpu_without_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_linear, "has_bfloat16_products", lambda: False)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("panel_bytes", [4, 4 * 24 * 7, 4 << 20])
def test_products_are_those_of_float32_rounded_once(
    has_bias: bool, panel_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output at a time, seven, or all."""
    monkeypatch.setattr(float_linear, "PANEL_BYTES", panel_bytes)
    torch.manual_seed(0)
    x, weight = torch.randn(3, 11, 24).bfloat16(), torch.randn(20, 24).bfloat16()
    bias = torch.randn(20).bfloat16() if has_bias else None
    out = linear_in_float32(x, weight, bias)
    assert out.dtype == torch.bfloat16
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


def test_only_many_rows_of_bfloat16_without_gradients_go_that_way() -> None:
    weight = torch.zeros(4, 16, dtype=torch.bfloat16)
    rows = torch.zeros(LEAST_ROWS, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert is_better_in_float32(rows, weight)
        assert not is_better_in_float32(rows[1:], weight)
        assert not is_better_in_float32(rows.float(), weight.float())
    assert not is_better_in_float32(rows, weight)


def test_a_model_keeps_everything_but_the_way_it_multiplies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4, bias=False)).bfloat16()
    rows = torch.randn(32, 16).bfloat16()
    with torch.no_grad():
        before = model(rows)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        use_float_linear(model)
        assert [type(layer) for layer in model if is_plain_linear(layer)] == [FloatLinear, FloatLinear]
        torch.testing.assert_close(model(rows), before, rtol=2**-6, atol=2**-6)
        torch.testing.assert_close(copy.deepcopy(model)(rows), model(rows))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model(rows).sum().backward()
    assert model[0].weight.grad is not None


def test_experts_go_the_same_way() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0, 20, LEAST_ROWS - 1, 9])
    rows, weights = torch.randn(int(counts.sum()), 16).bfloat16(), torch.randn(4, 8, 16).bfloat16()
    with torch.no_grad():
        out = grouped_matmul(rows, weights, counts)
    expert = torch.repeat_interleave(torch.arange(4), counts)
    exact = torch.einsum("nk,nfk->nf", rows.double(), weights.double()[expert])
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-6)
