"""The encoder's passes for training on a CPU are as accurate as PyTorch's, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.configs import small_model
from vl2.kernels.library import load_kernels
from vl2.model.vision import MLP, Attention
from vl2.train.cpu_encoder import _Gelu, use_cpu_encoder

kernels = load_kernels()
pytestmark = pytest.mark.skipif(
    kernels is None or not kernels.has_bfloat16_products, reason="needs a processor with bfloat16 products"
)


def passed(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output, the gradient of the input and those of the parameters, in float64."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    out = module(x)
    out.backward(grad.to(out.dtype))
    return [out, x.grad, *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]


def test_gelu_and_its_slope_are_those_of_float64() -> None:
    x = torch.cat((torch.randn(1003) * 3, torch.tensor([0.0, -0.0, 30.0, -30.0, 1e-3]))).bfloat16().requires_grad_()
    grad = torch.randn(1008).bfloat16()
    out = _Gelu.apply(x)
    out.backward(grad)
    exact = x.detach().double().requires_grad_()
    wanted = F.gelu(exact, approximate="tanh")
    wanted.backward(grad.double())
    # One rounding to bfloat16 is a relative error of 2^-8 at most.
    torch.testing.assert_close(out.double(), wanted.detach(), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-8, atol=1e-5)


def test_blocks_are_as_accurate_as_pytorch() -> None:
    torch.manual_seed(0)
    model = small_model().bfloat16()
    for parameter in model.vision.parameters():
        nn.init.normal_(parameter, std=0.05)
    plain, exact = copy.deepcopy(model.vision), copy.deepcopy(model.vision).double()
    chosen = use_cpu_encoder(model)
    assert len(chosen) == 2 * len(model.vision.blocks)
    x = torch.randn(3, *plain.pos_embed.shape[1:]).bfloat16()
    grad = torch.randn_like(x)
    for block, of_pytorch, of_float64 in zip(model.vision.blocks, plain.blocks, exact.blocks, strict=True):
        wanted = passed(of_float64, x.double(), grad)
        for ours, theirs, right in zip(passed(block, x, grad), passed(of_pytorch, x, grad), wanted, strict=True):
            error, error_of_pytorch = ((found.double() - right).abs().mean() for found in (ours, theirs))
            assert error <= 1.5 * error_of_pytorch


def test_only_modules_of_bfloat16_change() -> None:
    model = small_model()
    use_cpu_encoder(model)  # float32 weights, as in an evaluation of the same model
    x = torch.randn(2, *model.vision.pos_embed.shape[1:])
    for module in model.vision.blocks.modules():
        if isinstance(module, MLP | Attention):
            torch.testing.assert_close(module(x), type(module).forward(module, x))
