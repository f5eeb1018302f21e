"""Products in float32 where a CPU has none in bfloat16: the same numbers, and nothing else about a layer changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.model.configs import small_model
from vl2.kernels import matmul
from vl2.kernels.matmul import LEAST_ROWS, is_better_in_float32, linear_in_float32
from vl2.model import Cache
from vl2.runtime import cpu_modules
from vl2.runtime.cpu_modules import PanelLinear, counterpart_of, matmul_each_in_float32


@pytest.fixture(autouse=True)
def a_cpu_without_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "has_bfloat16_products", lambda: False)
    monkeypatch.setattr(cpu_modules, "has_bfloat16_products", lambda: False)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("panel_bytes", [4, 4 * 24 * 7, 4 << 20])
def test_products_are_those_of_float32_rounded_once(
    has_bias: bool, panel_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One output at a time, seven, or all."""
    monkeypatch.setattr(matmul, "PANEL_BYTES", panel_bytes)
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


def test_a_counterpart_shares_everything_but_the_way_it_multiplies() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4, bias=False)).bfloat16()
    rows = torch.randn(32, 16).bfloat16()
    fast = counterpart_of(model)
    with torch.no_grad():
        assert [type(layer) for layer in fast.children()] == [PanelLinear, nn.GELU, PanelLinear]
        assert [type(layer) for layer in model] == [nn.Linear, nn.GELU, nn.Linear]
        torch.testing.assert_close(fast(rows), model(rows), rtol=2**-6, atol=2**-6)
        torch.testing.assert_close(copy.deepcopy(fast)(rows), fast(rows))
    assert all(ours is theirs for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True))
    fast(rows).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_a_model_answers_in_panels_as_without(size: str) -> None:
    model = small_model(size).bfloat16()
    ids = torch.randint(5, 100, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embeds = model.language.embed(ids)
        plain, fast = (
            one.language.extend(embeds, Cache.allocate(
                model.config.language_config, 1, 40, dtype=torch.bfloat16, device=model.device
            ))
            for one in (model, counterpart_of(model))
        )  # fmt: skip
    assert (plain - fast).norm(dim=-1).median() < 0.05 * plain.norm(dim=-1).median()


def test_experts_go_the_same_way() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([0, 20, LEAST_ROWS - 1, 9])
    rows, weights = torch.randn(int(counts.sum()), 16).bfloat16(), torch.randn(4, 8, 16).bfloat16()
    with torch.no_grad():
        out = matmul_each_in_float32(rows, weights, counts)
    expert = torch.repeat_interleave(torch.arange(4), counts)
    exact = torch.einsum("nk,nfk->nf", rows.double(), weights.double()[expert])
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-6)
