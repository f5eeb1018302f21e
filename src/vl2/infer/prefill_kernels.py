"""A loaded model's encoder and prefill on a CPU in bfloat16: kernels for the gated MLPs and between other products.

Attention, activations, norms and the sum over experts take a third of PyTorch's time there, and a tenth with these; the
products of experts, with few rows each, are a seventh faster than the product library's. Where a kernel does not apply,
in another type, on another device, with gradients, the plain function does the work. What is put into the model are
functions of this module, so that a model can be copied as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2.kernels import prefill as kernels
from vl2.kernels.prefill import Weights
from vl2.kernels.structures import BF16, QUANTISED, StackC
from vl2.model import VL2, attention, layers, moe, rope, vision
from vl2.model.attention import LatentAttention, MultiHeadAttention, Reach
from vl2.model.float_linear import has_bfloat16_products, use_float_linear
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.moe import MAX_DECODED_ROWS, Experts, MoE, sort_by_expert
from vl2.model.rope import Angles
from vl2.quant.formats import Kind
from vl2.quant.modules import QuantisedExperts, QuantisedLinear
from vl2.quant.products import FEW_OF_A_PASS, linear

FEW_FOR_CODES = 8  # rows of an expert up to which int4 is multiplied code by code: to unpack it would take longer


def use_prefill_kernels(model: VL2) -> None:
    """Put the kernels where they may apply. In place; nothing that the model holds changes."""
    if not has_bfloat16_products():
        use_float_linear(model)
    for module in model.modules():
        if isinstance(module, vision.Attention):
            module.attend = attend_patches
        elif isinstance(module, vision.MLP):
            module.widen = widen
        elif isinstance(module, MultiHeadAttention):
            module.rotate = rotate_halves
            module.attend = attend
        elif isinstance(module, LatentAttention):
            module.attend = attend
        elif isinstance(module, RMSNorm):
            module.normalise = normalise
        elif isinstance(module, GatedMLP):
            module.run = run_gated
        elif isinstance(module, Experts):
            module.gated = gated
        elif isinstance(module, MoE):
            module.run_experts, module.sum_slots = run_experts, sum_slots


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


def run_experts(
    experts: nn.Module, x_TD: Tensor, expert_TK: Tensor, num_experts: int, *, is_step: bool = False
) -> tuple[Tensor, Tensor]:
    if _is_for_kernels(len(x_TD), is_step) and x_TD.is_contiguous() and kernels.applies(x_TD):
        read = _stacks(experts, expert_TK.numel() / num_experts)
        if read is not None:
            blocks = sort_by_expert(expert_TK, num_experts, 1)
            out_MD = kernels.run_experts(x_TD, blocks.token_M, blocks.counts_E, *read)
            if out_MD is not None:
                return out_MD, blocks.place_TK
    return moe.run_experts(experts, x_TD, expert_TK, num_experts, is_step=is_step)


def _is_for_kernels(rows: int, is_step: bool) -> bool:
    """Whether so many rows are. A step of decoding is as the plain way does it, or as the decode plan."""
    return rows > (MAX_DECODED_ROWS if is_step else FEW_OF_A_PASS)


def _stacks(experts: nn.Module, rows_each: float) -> tuple[Weights, int] | None:
    """Return the weights of experts that get so many rows each, and the hidden width; None where it is not for them."""
    if type(experts) is Experts:
        gate_up_EFD, down_EDF = experts.gate_up_proj, experts.down_proj
        if kernels.applies(gate_up_EFD, down_EDF) and down_EDF.is_contiguous():
            D, F = down_EDF.shape[1:]
            gate, up = (StackC.of(BF16, F, D, part) for part in gate_up_EFD.chunk(2, dim=1))
            return (gate, up, StackC.of(BF16, D, F, down_EDF)), F
    if isinstance(experts, QuantisedExperts) and takes(experts.kind, rows_each):
        kind, D, F = QUANTISED[experts.kind], experts.width, experts.hidden
        codes, scales = experts.gate_up_codes, experts.gate_up_scales
        gate, up = (StackC.of(kind, F, D, codes[:, part], scales[:, part]) for part in (0, 1))
        return (gate, up, StackC.of(kind, D, F, experts.down_codes, experts.down_scales)), F
    return None


def takes(kind: Kind, rows_each: float) -> bool:
    """Whether so many rows of a gated MLP are for the kernel, where int4 is made bfloat16 and int8 needs tiles."""
    return rows_each > FEW_FOR_CODES if kind == "int4" else kernels.has_tiles()


def run_gated(mlp: GatedMLP, x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]
    if _is_for_kernels(rows, moe.is_step(x)) and x.is_contiguous() and kernels.applies(x):
        weights = [_one_matrix(layer, rows) for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        gate, up, down = weights
        if gate is not None and up is not None and down is not None:
            hidden = mlp.gate_proj.out_features
            out_TD = kernels.run_experts(x.flatten(0, -2), None, torch.tensor([rows]), (gate, up, down), hidden)
            if out_TD is not None:
                return out_TD.view(x.shape)
    return layers.run_gated(mlp, x)


def _one_matrix(layer: nn.Module, rows: int) -> StackC | None:
    """Return a layer's weight as that of one expert; None where the kernel does not read it."""
    if type(layer) is nn.Linear and kernels.applies(layer.weight) and layer.weight.is_contiguous():
        return StackC.of(BF16, layer.out_features, layer.in_features, layer.weight.unsqueeze(0))
    if isinstance(layer, QuantisedLinear) and takes(layer.kind, rows):
        held = layer.codes.unsqueeze(0), layer.scales.unsqueeze(0)
        return StackC.of(QUANTISED[layer.kind], layer.out_features, layer.in_features, *held)
    return None


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if kernels.applies(x, weight) and x.is_contiguous():
        return kernels.normalise(x, weight, eps)
    return layers.normalise(x, weight, eps)


def rotate_halves(x_BSHC: Tensor, angles: Angles) -> Tensor:
    if kernels.applies(x_BSHC) and all(t.is_contiguous() for t in (x_BSHC, *angles)):
        return kernels.rotate_halves(x_BSHC, *angles)
    return rope.rotate_halves(x_BSHC, angles)


def gated(gate_up_NF: Tensor) -> Tensor:
    if kernels.applies(gate_up_NF) and gate_up_NF.is_contiguous():
        return kernels.gate_rows(gate_up_NF)
    return moe.gated(gate_up_NF)


def sum_slots(rows_MD: Tensor, place_TK: Tensor, weight_TK: Tensor) -> Tensor:
    if kernels.applies(rows_MD) and weight_TK.dtype == torch.float32:
        return kernels.sum_slots(rows_MD.contiguous(), place_TK.contiguous(), weight_TK.contiguous())
    return moe.sum_slots(rows_MD, place_TK, weight_TK)
