"""FP8 products: exact where nothing is rounded, within their bound elsewhere, and a training that learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.configs import small_model
from tests.train.packs import random_pack
from tests.train.test_stage import a_stage
from vl2.errors import UserError
from vl2.grid import UNTILED
from vl2.train.fp8 import check_fp8, fp8_linear, rounded, use_fp8
from vl2.train.ranks import ONE
from vl2.train.recipe import EngineOptions
from vl2.train.shard import shard
from vl2.train.step import TrainStep

T, D, OUT = 64, 96, 48
# A factor is off by at most 1/16 of itself: half of the distance of numbers with 3 bits of mantissa. A product of two
# is off by at most (1 + 1/16)^2 - 1 of itself.
BOUND = (1 + 1 / 16) ** 2 - 1


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_within(found: Tensor, a: Tensor, b: Tensor) -> None:
    """`found` is near a b^T, held against the same product of absolute values."""
    off, most = (found - a @ b.mT).abs(), BOUND * (a.abs() @ b.abs().mT)
    # Below 2^-6 of the scale numbers lie evenly, 2^-9 apart.
    tiny = 2**-10 / 224 * float(a.abs().max() * b.abs().max()) * 2 * a.shape[1]
    assert bool((off <= most + tiny).all())
    assert 0.005 < float(off.norm() / (a @ b.mT).norm()) < 0.06, "it is rounded, and not more than that"


def test_output_and_gradients_stay_within_the_bound_of_the_format() -> None:
    x, weight, bias, grad = drawn(T, D, seed=0), drawn(OUT, D, seed=1), drawn(OUT, seed=2), drawn(T, OUT, seed=3)
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    out = fp8_linear(x, weight, bias, is_emulated=True)
    out.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    with torch.no_grad():
        assert_within(out - bias, x, weight)
        assert_within(x.grad, grad, weight.mT)
        assert_within(weight.grad, grad.mT, x.mT)
    torch.testing.assert_close(bias.grad, grad.sum(0))


def test_numbers_that_fp8_holds_are_multiplied_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-8, 9, shape, generator=generator).float() for shape in ((T, D), (OUT, D)))
    assert torch.equal(fp8_linear(x, weight * 2**-9, is_emulated=True), F.linear(x, weight * 2**-9))


def test_the_kernel_does_what_the_emulation_does() -> None:
    x, weight = drawn(T, D, seed=0, dtype=torch.bfloat16), drawn(OUT, D, seed=1, dtype=torch.bfloat16)
    kernel, emulated = (fp8_linear(x, weight, is_emulated=is_emulated) for is_emulated in (False, True))
    # Both sum in float32 and round once to bfloat16, in another order.
    torch.testing.assert_close(kernel, emulated, atol=0.02, rtol=2**-7)


def test_rows_have_scales_of_their_own_and_zeros_stay() -> None:
    x = torch.stack((torch.zeros(16), torch.full((16,), 1e-6), torch.full((16,), 1e6), torch.arange(16.0)))
    values, scales = rounded(x)
    assert values.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(values.float() * scales, x, rtol=1 / 16, atol=0)
    exponents = scales.log2()
    assert torch.equal(exponents, exponents.round())


def test_sides_that_the_kernel_does_not_take_are_multiplied_as_before() -> None:
    x, weight = drawn(T + 1, D, seed=0), drawn(OUT, D, seed=1)
    assert torch.equal(fp8_linear(x, weight, is_emulated=False), x @ weight.mT)


def trained(mode: Any, steps: int) -> tuple[list[float], list[str]]:
    model = shard(small_model(), "replicated", ONE, torch.bfloat16)
    names = use_fp8(model, mode)
    step = TrainStep(model, a_stage(learning_rate=3e-3), ONE)
    pack, losses = random_pack(model.config, [(12, UNTILED), (5, None), (8, (2, 1))]), []
    for _ in range(steps):
        report = step.accumulate([pack])
        step.apply(report, 3e-3)
        losses.append(report.loss)
    return losses, names


def test_a_training_with_emulated_fp8_follows_that_without() -> None:
    (plain, none), (low, names) = trained("off", 12), trained("emulated", 12)
    assert none == []
    assert names
    assert all(".mlp.experts" not in name and "gate.weight" not in name for name in names)
    assert plain != low
    assert low[0] == pytest.approx(plain[0], rel=0.05)
    assert low[-1] < 0.7 * low[0]
    assert low[-1] == pytest.approx(plain[-1], abs=0.15 * plain[0])


def test_every_linear_layer_of_blocks_and_layers_with_sides_of_16_is_chosen() -> None:
    model = small_model()
    names = set(use_fp8(model, "emulated"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fits = all(side % 16 == 0 for side in module.weight.shape)
            assert (name in names) == (fits and (".blocks." in name or ".layers." in name)), name


def test_a_device_without_fp8_is_one_line() -> None:
    check_fp8("off", torch.device("cpu"))
    check_fp8("emulated", torch.device("cpu"))
    with pytest.raises(UserError, match=r'engine.fp8 = "on" needs an NVIDIA card .* the device is cpu: use "off"'):
        check_fp8("on", torch.device("cpu"))
    assert EngineOptions().fp8 == "off"
