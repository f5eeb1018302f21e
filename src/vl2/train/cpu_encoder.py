"""Faster passes of the SigLIP encoder's blocks while they are trained on a CPU in bfloat16.

PyTorch spends a quarter of a training step of an encoder on the tanh GELU, whose kernel evaluates tanh number by
number, and nearly a third on attention, which it multiplies in float32. Here the GELU and its gradient are the
package's own kernels, which compute in float32 and round once, as PyTorch's do. Attention over few patches is three
plain products in bfloat16, with AMX on processors that have it.

Formulas and parameters do not change, so that a run may go on with or without this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vl2.kernels import prefill_ops
from vl2.kernels.activation import Activation
from vl2.kernels.library import load_kernels
from vl2.model import VL2
from vl2.model.vision import MLP, Attention, VisionEncoder

# Of a tile. All scores are kept for the backward pass: 128 KB a head with so many patches, 1 MB with those of SigLIP.
MAX_PATCHES = 256


def use_cpu_encoder(model: VL2) -> list[str]:
    """Replace the passes of the encoder's modules, in place. Return the names of these modules, none without kernels.

    It is for a model whose weights are bfloat16 on a CPU.
    """
    kernels = load_kernels()
    if not isinstance(model.vision, VisionEncoder) or kernels is None or not kernels.has_bfloat16_products:
        return []
    is_small = model.vision.pos_embed.shape[1] <= MAX_PATCHES
    chosen = []
    for name, module in model.vision.blocks.named_modules(prefix="vision.blocks"):
        if type(module) is MLP:
            _use_gelu(module)
        elif type(module) is Attention and is_small:
            _use_products(module)
        else:
            continue
        chosen.append(name)
    return chosen


class _Gelu(torch.autograd.Function):
    """The tanh GELU. It keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return prefill_ops.activate_(x.clone(), Activation.GELU_TANH)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return prefill_ops.gelu_gradient(x, grad.contiguous())


def _use_gelu(mlp: MLP) -> None:
    def run(x: Tensor) -> Tensor:
        hidden: Tensor = mlp.fc1(x)
        if hidden.dtype != torch.bfloat16:
            return type(mlp).forward(mlp, x)
        out: Tensor = mlp.fc2(_Gelu.apply(hidden.contiguous()))  # type: ignore[no-untyped-call]
        return out

    _replace_forward(mlp, run)


def _use_products(attention: Attention) -> None:
    def run(x: Tensor) -> Tensor:
        q_IHpC, k_IHpC, v_IHpC = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores_IHpp = (q_IHpC * q_IHpC.shape[-1] ** -0.5) @ k_IHpC.mT
        out: Tensor = attention.proj((scores_IHpp.softmax(dim=-1) @ v_IHpC).transpose(1, 2).flatten(2))
        return out

    _replace_forward(attention, run)


def _replace_forward(module: nn.Module, run: Any) -> None:
    module.forward = run
