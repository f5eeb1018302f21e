"""Matrix products in FP8 (e4m3) for the linear layers of the encoder's blocks and of the decoder's layers.

The two factors of a product, forward and backward, are rounded to 3 bits of mantissa, with one scale for each of their
rows and columns that are not summed over. A scale is a power of two, so that scaling itself rounds nothing. Sums are
float32 and results have the type of the inputs. Weights, gradients and the optimizer keep their types; weights are
rounded anew in every pass, so there is nothing to save and no history of scales.

Routed experts, routers, the projector, the embedding and the head stay as they are: experts are few rows each, and the
others decide more than they cost. Layers whose sides are no multiple of 16 stay, too, and so does a product over a
number of rows that is none.

"emulated" rounds in the same way and multiplies in the compute type, on any device. It is slower than no FP8 at all and
shows what FP8 does to a training.

Source: arXiv 2209.05433 (FP8 formats); torch._scaled_mm, which torchao's float8 training calls, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.recipe import Fp8

_TYPE = torch.float8_e4m3fn
_MOST = torch.finfo(_TYPE).max
_MULTIPLE = 16  # of the sides of a matrix that the kernels take
_CAPABILITY = (9, 0)  # H100; older cards have no kernel with a scale for each row


def check_fp8(mode: Fp8, device: torch.device) -> None:
    """Raise UserError if the device cannot multiply in FP8."""
    if mode != "on":
        return
    needed = "an NVIDIA card of compute capability 9.0 or higher (H100)"
    if device.type != "cuda":
        raise UserError(f'engine.fp8 = "on" needs {needed}, the device is {device.type}: use "off"')
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY or torch.version.hip is not None:
        raise UserError(f'engine.fp8 = "on" needs {needed}, this one has {found[0]}.{found[1]}: use "off"')


def use_fp8(model: VL2, mode: Fp8) -> list[str]:
    """Let the linear layers of all blocks and layers multiply in FP8. In place. Return the names of these layers."""
    if mode == "off":
        return []
    chosen = []
    for name, module in model.named_modules():
        # The attention pool has linear layers, too, but never runs.
        is_inside = ".blocks." in name or ".layers." in name
        if is_inside and type(module) is nn.Linear and not any(side % _MULTIPLE for side in module.weight.shape):
            _use(module, is_emulated=mode == "emulated")
            chosen.append(name)
    return chosen


def product_of(linear: nn.Linear) -> Any:
    """Return the function (x, weight, bias) by which a linear layer multiplies: `F.linear`, or its form in FP8."""
    return linear.__dict__.get("fp8_product", F.linear)


def _use(linear: nn.Linear, *, is_emulated: bool) -> None:
    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return fp8_linear(x, weight, bias, is_emulated=is_emulated)

    linear.__dict__["fp8_product"] = product
    linear.forward = lambda x: product(x, linear.weight, linear.bias)  # type: ignore[method-assign, assignment]


def fp8_linear(x: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None, *, is_emulated: bool) -> Tensor:
    """Return x W^T + b, [..., F], with all three products of forward and backward pass in FP8."""
    out: Tensor = _Fp8Linear.apply(x, weight_FD, is_emulated)  # type: ignore[no-untyped-call]
    return out if bias_F is None else out + bias_F


class _Fp8Linear(torch.autograd.Function):
    # Rows are flattened in here, because FSDP2's hooks need an output that is no view.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FD: Tensor, is_emulated: bool) -> Tensor:
        ctx.save_for_backward(x, weight_FD)
        ctx.is_emulated = is_emulated
        return multiply(x.flatten(0, -2), weight_FD, is_emulated=is_emulated).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_FD = ctx.saved_tensors
        x_TD, grad_TF = x.flatten(0, -2), grad.flatten(0, -2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(grad_TF, weight_FD.mT, is_emulated=ctx.is_emulated).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = multiply(grad_TF.mT, x_TD.mT, is_emulated=ctx.is_emulated).to(weight_FD.dtype)
        return grad_x, grad_weight, None


def multiply(a_MK: Tensor, b_NK: Tensor, *, is_emulated: bool) -> Tensor:
    """Return a b^T, [M, N], of factors rounded to FP8 with a scale for each row, in the type of `a_MK`."""
    if any(side % _MULTIPLE for side in (*a_MK.shape, len(b_NK))) or not a_MK.numel():
        return a_MK @ b_NK.mT
    (a_8MK, a_M1), (b_8NK, b_N1) = rounded(a_MK), rounded(b_NK)
    if is_emulated:
        dtype = a_MK.dtype
        return (a_8MK.to(dtype) * a_M1.to(dtype)) @ (b_8NK.to(dtype) * b_N1.to(dtype)).mT
    # The kernel with a scale for each row returns bfloat16 only.
    return torch._scaled_mm(a_8MK, b_8NK.mT, scale_a=a_M1, scale_b=b_N1.mT, out_dtype=torch.bfloat16).to(a_MK.dtype)


def rounded(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of a matrix in FP8, contiguous, and their float32 scales [M, 1], which are powers of two."""
    wide_MK = x_MK.float()
    largest_M1 = wide_MK.abs().amax(dim=1, keepdim=True)
    # The smallest power of two with which the largest value fits; a row of zeros has the scale 1.
    scale_M1 = torch.exp2(torch.ceil(torch.log2(largest_M1 / _MOST)))
    scale_M1 = torch.where(largest_M1 > 0, scale_M1, torch.ones_like(scale_M1))
    return (wide_MK / scale_M1).clamp(-_MOST, _MOST).to(_TYPE).contiguous(), scale_M1
