"""A loaded model's encoder and prefill on a CPU in bfloat16: kernels in the place of what lies between the products.

Attention, the activations and the sum over experts take a third of PyTorch's time there, and a tenth with these. Where
a kernel does not apply, in another type, on another device, with gradients, the plain function does the work. What is
put into the model are functions of this module, so that a model can be copied as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2.kernels import prefill as kernels
from vl2.model import VL2, attention, moe, vision
from vl2.model.attention import LatentAttention, MultiHeadAttention, Reach
from vl2.model.float_linear import has_bfloat16_products, use_float_linear
from vl2.model.moe import Experts, MoE
from vl2.quant.modules import QuantisedLinear
from vl2.quant.products import linear


def use_prefill_kernels(model: VL2) -> None:
    """Put the kernels where they may apply. In place; nothing that the model holds changes."""
    if not has_bfloat16_products():
        use_float_linear(model)
    for module in model.modules():
        if isinstance(module, vision.Attention):
            module.attend = attend_patches
        elif isinstance(module, vision.MLP):
            module.widen = widen
        elif isinstance(module, MultiHeadAttention | LatentAttention):
            module.attend = attend
        elif isinstance(module, Experts):
            module.gated = gated
        elif isinstance(module, MoE):
            module.sum_slots = sum_slots


def attend_patches(q_IHpC: Tensor, k_IHpC: Tensor, v_IHpC: Tensor) -> Tensor:
    if kernels.applies(q_IHpC, k_IHpC, v_IHpC):
        out_IHpC = kernels.attend_seen(q_IHpC, k_IHpC, v_IHpC, None, q_IHpC.shape[-1] ** -0.5)
        if out_IHpC is not None:
            return out_IHpC
    return vision.attend(q_IHpC, k_IHpC, v_IHpC)


def widen(layer: nn.Module, x: Tensor) -> Tensor:
    """The activation inside the product: the wide result is written once, not written, read and written again."""
    # PyTorch's product has no form for a CPU without bfloat16 instructions, and raises.
    if type(layer) is nn.Linear and kernels.applies(x, layer.weight) and has_bfloat16_products():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
        return out
    if isinstance(layer, QuantisedLinear):
        return linear(x, layer.quantised, layer.out_features, layer.in_features, layer.bias, gelu=True)
    return vision.widen(layer, x)


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, reach: Reach, scale: float) -> Tensor:
    if reach.num_before is not None and kernels.applies(q_BHSC, k_BHLC, v_BHLC):
        out_BHSC = kernels.attend_seen(q_BHSC, k_BHLC, v_BHLC, reach.num_before, scale)
        if out_BHSC is not None:
            return out_BHSC
    return attention.attend(q_BHSC, k_BHLC, v_BHLC, reach, scale)


def gated(gate_up_NF: Tensor) -> Tensor:
    if kernels.applies(gate_up_NF) and gate_up_NF.is_contiguous():
        return kernels.gate_rows(gate_up_NF)
    return moe.gated(gate_up_NF)


def sum_slots(rows_MD: Tensor, place_TK: Tensor, weight_TK: Tensor) -> Tensor:
    if kernels.applies(rows_MD) and weight_TK.dtype == torch.float32:
        return kernels.sum_slots(rows_MD.contiguous(), place_TK.contiguous(), weight_TK.contiguous())
    return moe.sum_slots(rows_MD, place_TK, weight_TK)
