"""A loaded model's encoder and prefill on a CPU in bfloat16: kernels for the gated MLPs and between other products.

Attention, activations, norms and the sum over experts take a third of PyTorch's time there, and a tenth with these; the
products of experts, with few rows each, are a seventh faster than the product library's. Where a kernel does not apply,
in another type, on another device, with gradients, the plain function does the work. What is put into the model are
functions of this module, so that a model can be copied as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2.infer.encoder_plan import encoder_plan
from vl2.infer.language_plan import language_plan
from vl2.infer.weight_pointers import stacks_apart
from vl2.kernels import load_kernels
from vl2.kernels import prefill as kernels
from vl2.kernels.matmul import matmul
from vl2.kernels.prefill import Weights
from vl2.kernels.structures import BF16, QUANTIZED, MatrixC, StackC
from vl2.kernels.tiles import LINE, multiply_rows_in_tiles
from vl2.model import VL2, Cache, attention, language, layers, moe, rope, vision
from vl2.model.attention import AnyCache, AttentionMask, LatentAttention, MultiHeadAttention
from vl2.model.float_linear import has_bfloat16_products, use_float_linear
from vl2.model.language import LanguageModel
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.model.moe import MAX_DECODED_ROWS, Experts, MoE, PlainExperts, Router
from vl2.model.rope import Angles
from vl2.quant.formats import Kind
from vl2.quant.matmul import FEW_PREFILL_ROWS
from vl2.quant.matmul import linear as quantized_linear
from vl2.quant.modules import QuantizedExperts, QuantizedLinear

# Rows of an expert, on average, up to which int4 is multiplied code by code: to unpack it would take longer. With tile
# registers sixteen rows of what is unpacked are as few as one.
FEW_FOR_CODES = 8
FEW_FOR_CODES_WITH_TILES = 1
# So many rows of a gated MLP are one thread's: of no more, each product by itself is shared out between threads.
ROWS_OF_A_THREAD = 16


def use_prefill_kernels(model: VL2) -> None:
    """Put the kernels where they may apply. In place; nothing that the model holds changes."""
    if not has_bfloat16_products():
        use_float_linear(model)
    for module in model.modules():
        if isinstance(module, vision.Attention):
            module.attend, module.linear = attend_patches, linear
        elif isinstance(module, vision.MLP):
            module.linear = linear
        elif isinstance(module, vision.VisionEncoder):
            module.run_blocks = run_blocks
        elif type(module) is nn.LayerNorm:
            module.__class__ = LayerNorm
        elif isinstance(module, MultiHeadAttention):
            module.rotate, module.attend, module.linear = rotate_halves, attend, linear
        elif isinstance(module, LatentAttention):
            module.attend, module.linear = attend, linear
        elif isinstance(module, RMSNorm):
            module.normalize = normalize
        elif isinstance(module, GatedMLP):
            module.run = swiglu_mlp
        elif isinstance(module, PlainExperts):
            module.swiglu = swiglu
        elif isinstance(module, LanguageModel):
            module.lm_head_logits, module.fused_prefill = lm_head_logits, fused_prefill
        elif isinstance(module, Router):
            module.router_logits, module.topk = router_logits, topk
        elif isinstance(module, MoE):
            module.run_experts, module.combine_experts = run_experts, combine_experts


def run_blocks(encoder: vision.VisionEncoder, x: Tensor) -> Tensor:
    """All blocks in one call."""
    plan = encoder_plan(encoder) if kernels.applies(x) else None
    out = None if plan is None else plan.run(x)
    return vision.run_blocks(encoder, x) if out is None else out


def attend_patches(q_IHpC: Tensor, k_IHpC: Tensor, v_IHpC: Tensor) -> Tensor:
    if kernels.applies(q_IHpC, k_IHpC, v_IHpC):
        out_IHpC = kernels.attend(q_IHpC, k_IHpC, v_IHpC, None, q_IHpC.shape[-1] ** -0.5)
        if out_IHpC is not None:
            return out_IHpC
    return vision.attend(q_IHpC, k_IHpC, v_IHpC)


def linear(layer: nn.Module, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
    """Bias and sum inside the product. Not the activation: the product library takes half as long again for it."""
    rows = x.numel() // x.shape[-1]
    is_many = _is_for_kernels(rows, moe.is_decode_step(x), is_plain=type(layer) is nn.Linear)
    # PyTorch's product has no form for a CPU without bfloat16 instructions, and raises.
    if type(layer) is nn.Linear and is_many and kernels.applies(x, layer.weight) and has_bfloat16_products():
        in_tiles = _linear_in_tiles(layer, x, gelu=gelu, residual=residual)
        if in_tiles is not None:
            return in_tiles
        product = torch.ops.mkldnn._linear_pointwise
        if residual is not None:
            added: Tensor = product.binary(x, residual, layer.weight, layer.bias, "add")
            return added
        out: Tensor = product(x, layer.weight, layer.bias, "none", [], "")
        return kernels.gelu_(out) if gelu else out
    if isinstance(layer, QuantizedLinear):
        held = layer.quantized, layer.out_features, layer.in_features, layer.bias
        return quantized_linear(x, *held, gelu=gelu, residual=residual)
    return layers.linear(layer, x, gelu=gelu, residual=residual)


def _linear_in_tiles(layer: nn.Linear, x: Tensor, *, gelu: bool, residual: Tensor | None) -> Tensor | None:
    """Do the same where the processor has tile registers, and rows of the weight begin on lines of the cache."""
    library, (N, K) = load_kernels(), layer.weight.shape
    if library is None or not kernels.has_tiles() or K % LINE or not layer.weight.is_contiguous():
        return None
    residual_MN = None if residual is None else residual.reshape(-1, N).contiguous()
    out_MN = multiply_rows_in_tiles(
        library, x.reshape(-1, K), layer.weight, bias_N=layer.bias, gelu=gelu, residual_MN=residual_MN
    )
    return None if out_MN is None else out_MN.view(*x.shape[:-1], N)


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    if mask.prefix_length is not None and kernels.applies(q_BHSC, k_BHLC, v_BHLC):
        out_BHSC = kernels.attend(q_BHSC, k_BHLC, v_BHLC, mask.prefix_length, scale)
        if out_BHSC is not None:
            return out_BHSC
    return attention.attend(q_BHSC, k_BHLC, v_BHLC, mask, scale)


def run_experts(
    experts: nn.Module, x_TD: Tensor, expert_TK: Tensor, num_experts: int, *, is_decode_step: bool = False
) -> tuple[Tensor, Tensor]:
    is_for_kernels = _is_for_kernels(
        len(x_TD), is_decode_step, is_plain=type(experts) in (Experts, MemoryMappedExperts)
    )
    if is_for_kernels and x_TD.is_contiguous() and kernels.applies(x_TD):
        read = _stacks(experts, expert_TK.numel() / num_experts)
        if read is not None:
            token_index_M, row_index_TK, counts_E = kernels.sort_by_expert(expert_TK, num_experts)
            out_MD = kernels.run_experts(x_TD, token_index_M, counts_E, *read)
            if out_MD is not None:
                return out_MD, row_index_TK
    return moe.run_experts(experts, x_TD, expert_TK, num_experts, is_decode_step=is_decode_step)


def _is_for_kernels(rows: int, is_decode_step: bool, *, is_plain: bool) -> bool:
    """Whether so many rows are. Of plain weights any number where there are tile registers, to which one is as sixteen.

    Else a step of decoding is as the plain way does it, or as the decode plan.
    """
    return (is_plain and kernels.has_tiles()) or rows > (MAX_DECODED_ROWS if is_decode_step else FEW_PREFILL_ROWS)


def _stacks(experts: nn.Module, rows_each: float) -> tuple[Weights, int] | None:
    """Return the weights of experts that get so many rows each, and the hidden width; None where it is not for them."""
    if type(experts) is Experts:
        gate_up_EFD, down_EDF = experts.gate_up_proj, experts.down_proj
        if kernels.applies(gate_up_EFD, down_EDF) and down_EDF.is_contiguous():
            D, F = down_EDF.shape[1:]
            gate, up = (StackC.of(BF16, F, D, part) for part in gate_up_EFD.chunk(2, dim=1))
            return (gate, up, StackC.of(BF16, D, F, down_EDF)), F
    if isinstance(experts, MemoryMappedExperts) and kernels.applies(*experts.parameters()):
        return stacks_apart(experts), experts.pair(0)[1].shape[1]
    if isinstance(experts, QuantizedExperts) and takes(experts.kind, rows_each):
        kind, D, F = QUANTIZED[experts.kind], experts.width, experts.hidden
        codes, scales = experts.gate_up_codes, experts.gate_up_scales
        gate, up = (StackC.of(kind, F, D, codes[:, part], scales[:, part]) for part in (0, 1))
        return (gate, up, StackC.of(kind, D, F, experts.down_codes, experts.down_scales)), F
    return None


def takes(kind: Kind, rows_each: float) -> bool:
    """Whether so many rows of a gated MLP are for the kernel, where int4 is made bfloat16 and int8 needs tiles."""
    if kind == "int8":
        return kernels.has_tiles()
    return rows_each > (FEW_FOR_CODES_WITH_TILES if kernels.has_tiles() else FEW_FOR_CODES)


def swiglu_mlp(mlp: GatedMLP, x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1]
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    is_plain = all(type(part) is nn.Linear for part in parts)
    is_for_tiles = is_plain and kernels.applies(x) and kernels.has_tiles()
    if is_for_tiles and rows <= ROWS_OF_A_THREAD and not mlp.gate_proj.out_features % LINE and not x.shape[-1] % LINE:
        gate_up_NF = torch.cat([linear(part, x).flatten(0, -2) for part in parts[:2]], dim=1)
        return linear(mlp.down_proj, kernels.swiglu_rows(gate_up_NF, is_near=True)).view(x.shape)
    if _is_for_kernels(rows, moe.is_decode_step(x), is_plain=is_plain) and x.is_contiguous() and kernels.applies(x):
        weights = [_one_matrix(part, rows) for part in parts]
        gate, up, down = weights
        if gate is not None and up is not None and down is not None:
            hidden = mlp.gate_proj.out_features
            out_TD = kernels.run_experts(x.flatten(0, -2), None, torch.tensor([rows]), (gate, up, down), hidden)
            if out_TD is not None:
                return out_TD.view(x.shape)
    return layers.swiglu_mlp(mlp, x)


def _one_matrix(layer: nn.Module, rows: int) -> StackC | None:
    """Return a layer's weight as that of one expert; None where the kernel does not read it."""
    if type(layer) is nn.Linear and kernels.applies(layer.weight) and layer.weight.is_contiguous():
        return StackC.of(BF16, layer.out_features, layer.in_features, layer.weight.unsqueeze(0))
    if isinstance(layer, QuantizedLinear) and takes(layer.kind, rows):
        held = layer.codes.unsqueeze(0), layer.scales.unsqueeze(0)
        return StackC.of(QUANTIZED[layer.kind], layer.out_features, layer.in_features, *held)
    return None


class LayerNorm(nn.LayerNorm):
    """A layer norm by the kernel. An `nn.LayerNorm` may be given this class."""

    def forward(self, input: Tensor) -> Tensor:
        if kernels.applies(input, self.weight, self.bias) and input.is_contiguous():
            return kernels.layer_norm(input, self.weight, self.bias, self.eps)
        return super().forward(input)


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if kernels.applies(x, weight) and x.is_contiguous():
        return kernels.normalize(x, weight, eps)
    return layers.normalize(x, weight, eps)


def rotate_halves(x_BSHC: Tensor, angles: Angles, out_BSHC: Tensor | None = None) -> Tensor:
    is_one_row = out_BSHC is None or (len(x_BSHC) == 1 and kernels.applies(out_BSHC))
    if is_one_row and kernels.applies(x_BSHC) and all(t.is_contiguous() for t in (x_BSHC, *angles)):
        return kernels.rotate_halves(x_BSHC, *angles, out_BSHC)
    return rope.rotate_halves(x_BSHC, angles, out_BSHC)


def swiglu(gate_up_NF: Tensor) -> Tensor:
    if kernels.applies(gate_up_NF) and gate_up_NF.is_contiguous():
        return kernels.swiglu_rows(gate_up_NF)
    return moe.swiglu(gate_up_NF)


def combine_experts(rows_MD: Tensor, row_index_TK: Tensor, weight_TK: Tensor, *residual_TD: Tensor) -> Tensor:
    if kernels.applies(rows_MD, *residual_TD) and weight_TK.dtype == torch.float32:
        return kernels.combine_experts(*(t.contiguous() for t in (rows_MD, row_index_TK, weight_TK, *residual_TD)))
    return moe.combine_experts(rows_MD, row_index_TK, weight_TK, *residual_TD)


def fused_prefill(language: LanguageModel, embeds_BSD: Tensor, cache: AnyCache) -> Tensor | None:
    """All layers in one call: what Python does between the kernels of a prompt takes a tenth of the time."""
    if (
        not isinstance(cache, Cache)
        or len(embeds_BSD) != 1
        or embeds_BSD.shape[1] == 1
        or not kernels.applies(embeds_BSD)
    ):
        return None
    plan = language_plan(language)
    return None if plan is None else plan.prefill(embeds_BSD, cache)


def lm_head_logits(head: nn.Module, states: Tensor) -> Tensor:
    """Of a few states the kernel reads the head at the memory's speed, and does not round the logits."""
    library, few = load_kernels(), states.numel() <= MAX_DECODED_ROWS * states.shape[-1]
    if library is not None and few and type(head) is nn.Linear and kernels.applies(states, head.weight):
        held = MatrixC(BF16, head.out_features, head.in_features, head.weight.data_ptr())
        logits_MV = matmul(library, held, states.reshape(-1, head.in_features))
        return logits_MV.view(*states.shape[:-1], head.out_features)
    return language.lm_head_logits(head, states)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    if len(x_TD) > MAX_DECODED_ROWS and kernels.applies(x_TD, weight_ED):
        logits_TE = kernels.router_logits(x_TD.contiguous(), weight_ED.contiguous())
        if logits_TE is not None:
            return logits_TE
    return moe.router_logits(x_TD, weight_ED)


def topk(scores_TE: Tensor, K: int) -> Tensor:
    is_plain = scores_TE.device.type == "cpu" and scores_TE.dtype == torch.float32 and scores_TE.is_contiguous()
    if is_plain and len(scores_TE) > MAX_DECODED_ROWS and load_kernels() is not None:
        return kernels.topk(scores_TE, K)
    return moe.topk(scores_TE, K)
