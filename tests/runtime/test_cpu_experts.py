"""The kernels of experts and gated MLPs, plain and quantized, give what the plain functions give."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.kernel_case import ROW_LEVELS, assert_as_near_as_bfloat16, draw, needs_attention, needs_kernels
from vl2.kernels import prefill_ops as kernels
from vl2.kernels.build import supported_levels
from vl2.kernels.library import kernels_of_level
from vl2.model import layers, moe
from vl2.quant import modules, quantized_matmul
from vl2.quant.formats import Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.runtime import cpu_modules

QUANTIZED_LEVELS: list[tuple[Kind, str]] = [("int4", level) for level in ROW_LEVELS]
INT8_LEVELS = [level.name for level in supported_levels() if level.has_row_products]
QUANTIZED_LEVELS += [("int8", level) for level in INT8_LEVELS]
# int4 is made bfloat16; of int8 what enters each product is rounded to 8 bits.
DISTANCE: dict[Kind, float] = {"int4": 0.01, "int8": 0.025}


@needs_attention
@pytest.mark.parametrize("level", ROW_LEVELS)
@pytest.mark.parametrize(("width", "hidden"), [(32, 32), (64, 96), (160, 64)])
@torch.no_grad()
def test_experts_are_those_of_pytorch_and_a_token_gets_the_same_bits_whatever_is_beside_it(
    width: int, hidden: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda: kernels_of_level(level))
    torch.manual_seed(0)
    experts, num_experts = moe.Experts(7, width, hidden), 7
    for parameter in experts.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    exact_experts = copy.deepcopy(experts)
    experts.to(torch.bfloat16)
    x, generator = draw(500, width, seed=1), torch.Generator().manual_seed(2)
    # Some experts get hundreds of tokens, more than one task takes, and some a few or none.
    chosen = (
        (torch.rand(500, num_experts, generator=generator) * torch.tensor([9, 3, 1, 1, 0.6, 0.5, 0])).topk(2).indices
    )
    assert chosen.flatten().bincount(minlength=num_experts).max() > 192
    exact_experts.to(torch.bfloat16).float()
    exact, places = moe.run_experts(exact_experts, x.float(), chosen, num_experts)
    plain, plain_places = moe.run_experts(experts, x, chosen, num_experts)
    ours, our_places = cpu_modules.run_experts(experts, x, chosen, num_experts)
    assert_as_near_as_bfloat16(ours[our_places], plain[plain_places], exact[places])
    for part in (slice(0, 9), slice(0, 64), slice(3, 140), slice(170, 500)):  # of a few tokens or many
        alone, alone_places = cpu_modules.run_experts(experts, x[part], chosen[part], num_experts)
        assert torch.equal(alone[alone_places], ours[our_places[part]])


@needs_kernels
@pytest.mark.parametrize("rows", [1, 9, 40])
@torch.no_grad()
def test_a_step_with_plain_weights_has_the_same_bits_in_any_company(rows: int) -> None:
    experts, mlp = moe.Experts(5, 160, 64).to(torch.bfloat16), layers.GatedMLP(160, 96).to(torch.bfloat16)
    for seed, parameter in enumerate([*experts.parameters(), *mlp.parameters()]):
        parameter.copy_(draw(*parameter.shape, seed=seed) * 0.1)
    fast = cpu_modules.counterpart_of(mlp)
    x, chosen = draw(rows, 160), torch.rand(rows, 5, generator=torch.Generator().manual_seed(2)).topk(2).indices

    def run(part: slice) -> Tensor:
        out, places = cpu_modules.run_experts(experts, x[part], chosen[part], 5, equal_blocks=True)
        return torch.cat([out[places].flatten(1), fast(x[part].unsqueeze(1)).squeeze(1)], dim=1)

    together = run(slice(0, rows))
    assert torch.equal(together, torch.cat([run(slice(row, row + 1)) for row in range(rows)]))
    plain, places = moe.run_experts(experts, x, chosen, 5, equal_blocks=True)
    for ours, theirs in ((together[:, :320], plain[places].flatten(1)), (together[:, 320:], mlp(x))):
        assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max()


@needs_attention
@pytest.mark.parametrize(("kind", "level"), QUANTIZED_LEVELS)
@torch.no_grad()
def test_quantized_experts_of_many_rows_are_those_they_stand_for(
    kind: Kind, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda: kernels_of_level(level))
    num_experts, width, hidden = 5, 160, 64
    plain = moe.Experts(num_experts, width, hidden)
    quantized = QuantizedExperts.like(plain, kind)
    for expert in range(num_experts):
        quantized.quantize_from("gate_up", expert, draw(2 * hidden, width, seed=expert) * 0.2)
        quantized.quantize_from("down", expert, draw(width, hidden, seed=10 + expert) * 0.2)
        plain.gate_up_proj[expert] = quantized.dequantize("gate_up", expert, torch.float32)
        plain.down_proj[expert] = quantized.dequantize("down", expert, torch.float32)
    # One expert gets nearly all, more than one task takes, and one none.
    x, shares = draw(300, width, seed=1), torch.tensor([9, 1, 1, 0.8, 0])
    chosen = (torch.rand(300, num_experts, generator=torch.Generator().manual_seed(2)) * shares).topk(2).indices
    exact, places = moe.run_experts(plain, x.float(), chosen, num_experts)
    by_kernel: list[Tensor | None] = []
    run = kernels.run_experts
    monkeypatch.setattr(kernels, "run_experts", lambda *given: by_kernel.append(run(*given)) or by_kernel[-1])
    ours, our_places = cpu_modules.run_experts(quantized, x, chosen, num_experts)
    assert by_kernel[0] is ours
    wanted = exact[places]
    assert (ours[our_places] - wanted).norm() < DISTANCE[kind] * wanted.norm()
    for name in ("FEW_FOR_CODES", "FEW_FOR_CODES_WITH_TILES"):
        monkeypatch.setattr(quantized_matmul, name, 29)
    cpu_modules.run_experts(quantized, x[:70], chosen[:70], num_experts)
    is_by_codes = kind == "int4"
    assert len(by_kernel) == 2 - is_by_codes, "28 rows an expert are few: int4 is multiplied code by code"


@pytest.mark.skipif(not INT8_LEVELS, reason="no kernels for many rows")
@pytest.mark.parametrize(("width", "hidden"), [(160, 64), (96, 224), (128, 32)])
@torch.no_grad()
def test_int8_experts_in_tiles_have_the_bits_of_the_products_one_by_one_whatever_is_beside_a_token(
    width: int, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda: kernels_of_level(INT8_LEVELS[0]))
    monkeypatch.setattr(modules, "FEW_ROWS", 0)  # experts of few rows too are to round them
    num_experts = 5
    experts = QuantizedExperts("int8", num_experts, width, hidden, device=torch.device("cpu"))
    for expert in range(num_experts):
        experts.quantize_from("gate_up", expert, draw(2 * hidden, width, seed=expert) * 0.2)
        experts.quantize_from("down", expert, draw(width, hidden, seed=10 + expert) * 0.2)
    x, shares = draw(401, width, seed=1), torch.tensor([9, 1, 1, 0.8, 0])
    chosen = (torch.rand(401, num_experts, generator=torch.Generator().manual_seed(2)) * shares).topk(2).indices
    counts = chosen.flatten().bincount(minlength=num_experts)
    assert counts.max() > 192, "more than one task takes"
    assert any(0 < -count % 32 < 16 for count in counts), "an expert with an even number of vectors"
    assert any(-count % 32 >= 16 for count in counts), "an expert with an odd one"
    ours, our_places = cpu_modules.run_experts(experts, x, chosen, num_experts)
    each, places = moe.run_experts(experts, x, chosen, num_experts)
    assert torch.equal(ours[our_places], each[places])
    part = slice(170, 300)
    alone, alone_places = cpu_modules.run_experts(experts, x[part], chosen[part], num_experts)
    assert torch.equal(alone[alone_places], ours[our_places[part]])


@needs_kernels
@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_a_step_of_decoding_is_as_the_plain_way_does_it(kind: Kind) -> None:
    """The decode plan is held equal to that; what reads a prompt may round otherwise."""
    experts = QuantizedExperts(kind, 5, 160, 64, device=torch.device("cpu"))
    for expert in range(5):
        experts.quantize_from("gate_up", expert, draw(128, 160, seed=expert) * 0.2)
        experts.quantize_from("down", expert, draw(160, 64, seed=10 + expert) * 0.2)
    x, chosen = draw(40, 160), torch.rand(40, 5, generator=torch.Generator().manual_seed(2)).topk(2).indices
    ours, plain = (way(experts, x, chosen, 5, equal_blocks=True) for way in (cpu_modules.run_experts, moe.run_experts))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])


@needs_attention
@pytest.mark.parametrize(("kind", "level"), QUANTIZED_LEVELS)
@torch.no_grad()
def test_a_quantized_mlp_of_many_rows_is_that_it_stands_for(
    kind: Kind, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda: kernels_of_level(level))
    mlp = layers.GatedMLP(96, 160)
    quantized = copy.deepcopy(mlp)
    for name, plain in mlp.named_children():
        assert isinstance(plain, nn.Linear)
        layer = QuantizedLinear.like(plain, kind)
        layer.quantize_from(plain.weight)
        plain.weight.copy_(layer.dequantize(torch.float32))
        setattr(quantized, name, layer)
    x = draw(2, 100, 96)
    wanted = mlp(x.float())
    weight = cpu_modules._one_matrix(quantized.gate_proj, 200)
    assert weight is not None
    assert weight.first.scales is not None
    assert (cpu_modules.counterpart_of(quantized)(x) - wanted).norm() < DISTANCE[kind] * wanted.norm()


@needs_kernels
@torch.no_grad()
def test_experts_of_a_shape_beyond_the_kernel_take_the_plain_way() -> None:
    experts = moe.Experts(3, 24, 40).to(torch.bfloat16)
    for parameter in experts.parameters():
        parameter.normal_()
    x, chosen = draw(20, 24), torch.tensor([[0, 2]]).expand(20, 2)
    ours, plain = (way(experts, x, chosen, 3) for way in (cpu_modules.run_experts, moe.run_experts))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])


@needs_attention
@torch.no_grad()
def test_a_gated_mlp_is_that_of_pytorch() -> None:
    mlp = layers.GatedMLP(96, 160).to(torch.bfloat16)
    x = draw(2, 130, 96)
    exact = copy.deepcopy(mlp).float()(x.float())
    assert_as_near_as_bfloat16(cpu_modules.counterpart_of(mlp)(x), mlp(x), exact)
