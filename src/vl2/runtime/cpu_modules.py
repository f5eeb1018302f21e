"""Counterparts of a model's modules that use the CPU kernels: attention, gated MLPs, norms and experts in bfloat16.

In PyTorch on a CPU, attention, activations, norms and the sum over experts take a third of the time; with these
kernels they take a tenth. Matrix products of experts with few rows each are a seventh faster than oneDNN's. If a kernel
does not apply (another dtype or device, or with gradients), each function computes what the plain module does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vl2.kernels import load_kernels
from vl2.kernels import prefill_ops as kernels
from vl2.kernels.matmul import (
    LINE,
    MAX_DECODED_ROWS,
    has_bfloat16_products,
    is_better_in_float32,
    is_decode_step,
    linear_in_float32,
    matmul,
)
from vl2.kernels.prefill_ops import Weights
from vl2.kernels.structures import BF16, QUANTIZED, MatrixC, StackC
from vl2.model import (
    VL2,
    Cache,
    attention,
    clip,
    deep_encoder,
    language,
    layers,
    moe,
    query_encoder,
    rope,
    sam,
    vision,
)
from vl2.model.attention import of_last
from vl2.model.cache import CacheLayer, attend_cached
from vl2.model.mask import AttentionMask
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.model.moe import RoutingStats, routing_stats
from vl2.model.rope import Angles
from vl2.quant.formats import Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantized_matmul import few_rows_of_an_expert
from vl2.runtime import counterparts
from vl2.runtime.cpu_encoders import (
    CpuBlock,
    CpuClipEncoder,
    CpuClipLayer,
    CpuQueryAttention,
    CpuSamBlock,
    CpuSamEncoder,
    CpuVisionEncoder,
)
from vl2.runtime.fused_passes import stacks_apart
from vl2.runtime.linear import CpuLinear, PanelLinear, is_for_kernels, is_plain_linear, linear

# The kernel for gated MLPs gives each thread so many rows. For fewer rows it would use one thread only, so each product
# runs separately, with its outputs divided among the threads.
ROWS_OF_A_THREAD = 16


def with_kernels(model: VL2) -> VL2:
    """Return a model with the same weights, buffers and hooks whose modules run the kernels.

    The given model is unchanged. Both models share the modules of other classes, such as adapters.
    """
    return cast(VL2, counterpart_of(model))


def counterpart_of(module: nn.Module) -> nn.Module:
    """Return the counterpart of a module, or the module itself if its class has none."""
    return counterparts.counterpart_of(module, _counterpart)


def _counterpart(kind: type[nn.Module], parent: type[nn.Module] | None) -> type[nn.Module] | None:
    if kind is nn.Linear:
        if parent in MULTIPLYING:
            return CpuLinear
        return None if has_bfloat16_products() else PanelLinear
    return kind if kind in CONTAINERS else COUNTERPARTS.get(kind)


class CpuLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        if kernels.applies(input, self.weight, self.bias) and input.is_contiguous():
            return kernels.layer_norm(input, self.weight, self.bias, self.eps)
        return super().forward(input)


class CpuRMSNorm(layers.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if kernels.applies(x, self.weight) and x.is_contiguous():
            return kernels.normalize(x, self.weight, self.eps)
        return super().forward(x)


class CpuGatedMLP(layers.GatedMLP):
    def forward(self, x: Tensor) -> Tensor:
        out = swiglu_mlp(self, x)
        return super().forward(x) if out is None else out


class CpuMultiHeadAttention(attention.MultiHeadAttention):
    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        *,
        last_only: bool = False,
        residual_BSD: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the plain module, plus `residual_BSD` if given."""
        asked_BSD, asked_angles, mask = of_last(x_BSD, angles, mask) if last_only else (x_BSD, angles, mask)
        q_BHSC = self.queries(asked_BSD, asked_angles)
        scale = self.head_dim**-0.5
        # A cache of another class, such as Int8Cache, does not hold keys and values as they are.
        if cache is not None and type(cache.cache) is Cache and x_BSD.shape[0] == 1 and x_BSD.shape[1] > 1:
            out_BHSC = attend(q_BHSC, *self._write_prompt(x_BSD, angles, cache.cache, cache.index), mask, scale)
        else:
            new = self.keys_and_values(x_BSD, angles)
            out_BHSC = attend_cached(cache, (q_BHSC,), new, lambda q, kv: attend(q[0], kv[0], kv[1], mask, scale))
        return linear(self.o_proj, out_BHSC.transpose(1, 2).flatten(2), residual=residual_BSD)

    def queries(self, x_BSD: Tensor, angles: Angles) -> Tensor:
        return rotate_halves(self.q_proj(x_BSD).unflatten(-1, (self.num_heads, -1)), angles).transpose(1, 2)

    def keys_and_values(self, x_BSD: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        k_BSHC = rotate_halves(self.k_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1)), angles)
        v_BSHC = self.v_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        return k_BSHC.transpose(1, 2), v_BSHC.transpose(1, 2)

    def _write_prompt(self, x_1SD: Tensor, angles: Angles, row: Cache, layer: int) -> tuple[Tensor, Tensor]:
        """Write a prompt's rotated keys and its values directly into the row; return the row's keys and values."""
        k_1HSC, v_1HSC = row.place(layer, x_1SD.shape[1])
        k_1SHC = self.k_proj(x_1SD).unflatten(-1, (self.num_kv_heads, -1))
        rotate_halves(k_1SHC, angles, k_1HSC.transpose(1, 2))
        v_1HSC.copy_(self.v_proj(x_1SD).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2))
        k_1HLC, v_1HLC = row.filled(layer, x_1SD.shape[1])
        return k_1HLC, v_1HLC


class CpuLatentAttention(attention.LatentAttention):
    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        *,
        last_only: bool = False,
        residual_BSD: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the plain module, plus `residual_BSD` if given."""
        out_BSHC = self.attended(x_BSD, angles, mask, cache, last_only=last_only)
        return linear(self.o_proj, out_BSHC.flatten(2), residual=residual_BSD)

    def _can_absorb(self) -> bool:
        return is_plain_linear(self.kv_b_proj)

    def _attend_heads(
        self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, mask: AttentionMask
    ) -> Tensor:
        return attend(*self.heads(q_nope_BSHC, q_rope_BSHC, shared_BLC), mask, self.scale).transpose(1, 2)


class CpuDecoderLayer(language.DecoderLayer):
    """A decoder layer that adds the residuals inside the matrix products."""

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        sequences_GT: Tensor | None = None,
        *,
        last_only: bool = False,
        equal_blocks: bool = False,
    ) -> tuple[Tensor, RoutingStats | None]:
        before_BSD = x_BSD[:, -1:] if last_only else x_BSD
        normed_BSD = self.input_layernorm(x_BSD)
        x_BSD = self.self_attn(normed_BSD, angles, mask, cache, last_only=last_only, residual_BSD=before_BSD)
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, CpuMoE):
            mixed: tuple[Tensor, RoutingStats | None] = self.mlp(
                normed_BSD, sequences_GT, equal_blocks=equal_blocks, residual_BSD=x_BSD
            )
            return mixed
        return x_BSD + self.mlp(normed_BSD), None


class CpuRouter(moe.Router):
    def logits(self, x_TD: Tensor) -> Tensor:
        if len(x_TD) > MAX_DECODED_ROWS and kernels.applies(x_TD, self.weight):
            logits_TE = kernels.router_logits(x_TD.contiguous(), self.weight.contiguous())
            if logits_TE is not None:
                return logits_TE
        return super().logits(x_TD)

    def topk(self, scores_TE: Tensor) -> Tensor:
        is_plain = scores_TE.device.type == "cpu" and scores_TE.dtype == torch.float32 and scores_TE.is_contiguous()
        if is_plain and len(scores_TE) > MAX_DECODED_ROWS and load_kernels() is not None:
            return kernels.topk(scores_TE, self.experts_per_token)
        return super().topk(scores_TE)


class CpuMoE(moe.MoE):
    def forward(
        self,
        x_BSD: Tensor,
        sequences_GT: Tensor | None = None,
        *,
        equal_blocks: bool = False,
        residual_BSD: Tensor | None = None,
    ) -> tuple[Tensor, RoutingStats | None]:
        """Return the output and statistics of the plain module; `residual_BSD` is added to the output if given."""
        x_TD = x_BSD.flatten(0, 1)
        weight_TK, scores_TE, expert_TK = self.gate(x_TD)
        out_MD, row_index_TK = run_experts(
            self.experts, x_TD, expert_TK, self.gate.num_experts, equal_blocks=equal_blocks
        )
        shared_BSD = None if self.shared_experts is None else self.shared_experts(x_BSD)
        added_TD = (added_BSD.flatten(0, 1) for added_BSD in (shared_BSD, residual_BSD) if added_BSD is not None)
        y_BSD = combine_experts(out_MD, row_index_TK, weight_TK, *added_TD).view_as(x_BSD)
        return y_BSD, None if sequences_GT is None else routing_stats(scores_TE, expert_TK, sequences_GT)


class CpuExperts(moe.Experts):
    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        if is_emulated(x_ND):
            h_NF = swiglu(matmul_each_in_float32(x_ND, self.gate_up_proj, counts_E))
            return matmul_each_in_float32(h_NF, self.down_proj, counts_E)
        return self.down(swiglu(self.gate_up(x_ND, counts_E)), counts_E)


class CpuMemoryMappedExperts(MemoryMappedExperts):
    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        if is_emulated(x_ND):
            gate_up, down = zip(*self.pairs(), strict=True)
            return matmul_each_in_float32(swiglu(matmul_each_in_float32(x_ND, gate_up, counts_E)), down, counts_E)
        return self.down(swiglu(self.gate_up(x_ND, counts_E)), counts_E)


class CpuLanguageModel(language.LanguageModel):
    def logits(self, states_BSD: Tensor) -> Tensor:
        logits = lm_head_logits(self.lm_head, states_BSD)
        return super().logits(states_BSD) if logits is None else logits


# Modules whose linear layers become CpuLinear.
MULTIPLYING: tuple[type[nn.Module], ...] = (
    vision.Attention,
    vision.MLP,
    sam.Attention,
    sam.MLP,
    clip.Attention,
    clip.MLP,
    query_encoder.Attention,
    attention.MultiHeadAttention,
    attention.LatentAttention,
)
CONTAINERS: tuple[type[nn.Module], ...] = (
    VL2,
    language.Decoder,
    nn.ModuleList,
    nn.Sequential,
    vision.Attention,
    vision.MLP,
    deep_encoder.DeepEncoder,
    deep_encoder.DeepEncoder2,
    sam.Attention,
    sam.MLP,
    clip.Transformer,
    clip.Attention,
    clip.MLP,
    query_encoder.QueryEncoder,
    query_encoder.Layer,
)
COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: CpuLayerNorm,
    vision.Block: CpuBlock,
    vision.VisionEncoder: CpuVisionEncoder,
    sam.Block: CpuSamBlock,
    sam.SamEncoder: CpuSamEncoder,
    clip.Layer: CpuClipLayer,
    clip.ClipEncoder: CpuClipEncoder,
    query_encoder.Attention: CpuQueryAttention,
    layers.RMSNorm: CpuRMSNorm,
    layers.GatedMLP: CpuGatedMLP,
    attention.MultiHeadAttention: CpuMultiHeadAttention,
    attention.LatentAttention: CpuLatentAttention,
    language.DecoderLayer: CpuDecoderLayer,
    language.LanguageModel: CpuLanguageModel,
    moe.Router: CpuRouter,
    moe.MoE: CpuMoE,
    moe.Experts: CpuExperts,
    MemoryMappedExperts: CpuMemoryMappedExperts,
}


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Return the attention output, [B, H, S, C]. The kernel is used only for masks with a `prefix_length`."""
    if mask.prefix_length is not None and kernels.applies(q_BHSC, k_BHLC, v_BHLC):
        out_BHSC = kernels.attend(q_BHSC, k_BHLC, v_BHLC, mask.prefix_length, scale)
        if out_BHSC is not None:
            return out_BHSC
    return attention.attend(q_BHSC, k_BHLC, v_BHLC, mask, scale)


def run_experts(
    experts: nn.Module, x_TD: Tensor, expert_TK: Tensor, num_experts: int, *, equal_blocks: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the same as `vl2.model.moe.run_experts`: rows sorted by expert, [M, D], and each slot's row, [T, K]."""
    takes_rows = is_for_kernels(len(x_TD), equal_blocks, is_plain=isinstance(experts, moe.PlainExperts))
    if takes_rows and x_TD.is_contiguous() and kernels.applies(x_TD):
        read = _stacks(experts, expert_TK.numel() / num_experts)
        if read is not None:
            token_index_M, row_index_TK, counts_E = kernels.sort_by_expert(expert_TK, num_experts)
            out_MD = kernels.run_experts(x_TD, token_index_M, counts_E, *read)
            if out_MD is not None:
                return out_MD, row_index_TK
    return moe.run_experts(experts, x_TD, expert_TK, num_experts, equal_blocks=equal_blocks)


def is_emulated(x: Tensor) -> bool:
    """Return whether PyTorch would emulate matrix products of these rows, which are faster in float32."""
    return x.dtype == torch.bfloat16 and not torch.is_grad_enabled() and not has_bfloat16_products()


def matmul_each_in_float32(x_ND: Tensor, weights: Sequence[Tensor] | Tensor, counts_E: Tensor) -> Tensor:
    """Return the same as `vl2.model.moe.matmul_each`, computed in float32 where that is faster, [N, F]."""
    counts = counts_E.tolist()
    out_NF = x_ND.new_empty(len(x_ND), weights[0].shape[0])
    for expert, (rows, out) in enumerate(zip(x_ND.split(counts), out_NF.split(counts), strict=True)):
        if is_better_in_float32(rows, weights[expert]):
            out.copy_(linear_in_float32(rows, weights[expert]))
        elif len(rows):
            torch.mm(rows, weights[expert].mT, out=out)
    return out_NF


def _stacks(experts: nn.Module, rows_each: float) -> tuple[Weights, int] | None:
    """Return the weights and the hidden width of experts, or None if the kernel does not apply.

    `rows_each` is the average number of rows per expert.
    """
    if isinstance(experts, moe.Experts):
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
    """Return whether the kernel for gated MLPs is used for a quantized weight and so many rows.

    It dequantizes int4 weights to bfloat16, which pays only for enough rows. For int8 weights it needs AVX-512 or
    the matrix extensions of NEON.
    """
    if kind == "int8":
        return kernels.has_row_products()
    return rows_each > few_rows_of_an_expert()


def swiglu_mlp(mlp: layers.GatedMLP, x: Tensor) -> Tensor | None:
    """Return the output of a gated MLP, or None if the kernels do not apply."""
    rows = x.numel() // x.shape[-1]
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    is_plain = all(type(part) is nn.Linear for part in parts)
    is_for_tiles = is_plain and kernels.applies(x) and kernels.has_tiles()
    if is_for_tiles and rows <= ROWS_OF_A_THREAD and not mlp.gate_proj.out_features % LINE and not x.shape[-1] % LINE:
        gate_up_NF = torch.cat([linear(part, x).flatten(0, -2) for part in parts[:2]], dim=1)
        return linear(mlp.down_proj, kernels.swiglu_rows(gate_up_NF, is_near=True)).view(x.shape)
    if is_for_kernels(rows, is_decode_step(x), is_plain=is_plain) and x.is_contiguous() and kernels.applies(x):
        weights = [_one_matrix(part, rows) for part in parts]
        gate, up, down = weights
        if gate is not None and up is not None and down is not None:
            hidden = mlp.gate_proj.out_features
            out_TD = kernels.run_experts(x.flatten(0, -2), None, torch.tensor([rows]), (gate, up, down), hidden)
            if out_TD is not None:
                return out_TD.view(x.shape)
    return None


def _one_matrix(layer: nn.Module, rows: int) -> StackC | None:
    """Return a layer's weight as a stack of one expert, or None if the kernel does not support it."""
    if type(layer) is nn.Linear and kernels.applies(layer.weight) and layer.weight.is_contiguous():
        return StackC.of(BF16, layer.out_features, layer.in_features, layer.weight.unsqueeze(0))
    if isinstance(layer, QuantizedLinear) and takes(layer.kind, rows):
        held = layer.codes.unsqueeze(0), layer.scales.unsqueeze(0)
        return StackC.of(QUANTIZED[layer.kind], layer.out_features, layer.in_features, *held)
    return None


def rotate_halves(x_BSHC: Tensor, angles: Angles, out_BSHC: Tensor | None = None) -> Tensor:
    """Return the rotated heads, [B, S, H, C], written into `out_BSHC` if it is given."""
    is_one_row = out_BSHC is None or (len(x_BSHC) == 1 and kernels.applies(out_BSHC))
    if is_one_row and kernels.applies(x_BSHC) and all(t.is_contiguous() for t in (x_BSHC, *angles)):
        return kernels.rotate_halves(x_BSHC, *angles, out_BSHC)
    rotated_BSHC = rope.rotate_halves(x_BSHC, angles)
    return rotated_BSHC if out_BSHC is None else out_BSHC.copy_(rotated_BSHC)


def swiglu(gate_up_NF: Tensor) -> Tensor:
    """Return silu(gate) * up of rows [gate | up], by the kernel where it applies."""
    if kernels.applies(gate_up_NF) and gate_up_NF.is_contiguous():
        return kernels.swiglu_rows(gate_up_NF)
    return moe.swiglu(gate_up_NF)


def combine_experts(rows_MD: Tensor, row_index_TK: Tensor, weight_TK: Tensor, *residual_TD: Tensor) -> Tensor:
    """Return the weighted sum of every token's rows, plus each of `residual_TD` in turn, [T, D]."""
    if kernels.applies(rows_MD, *residual_TD) and weight_TK.dtype == torch.float32:
        return kernels.combine_experts(*(t.contiguous() for t in (rows_MD, row_index_TK, weight_TK, *residual_TD)))
    out_TD = moe.combine_experts(rows_MD, row_index_TK, weight_TK)
    for before_TD in residual_TD:
        out_TD = before_TD + out_TD
    return out_TD


def lm_head_logits(head: nn.Module, states: Tensor) -> Tensor | None:
    """Return the float32 logits of up to MAX_DECODED_ROWS states, [..., V], or None if the kernel does not apply."""
    library, few = load_kernels(), states.numel() <= MAX_DECODED_ROWS * states.shape[-1]
    if library is None or not few or not is_plain_linear(head) or not kernels.applies(states, head.weight):
        return None
    held = MatrixC(BF16, head.out_features, head.in_features, head.weight.data_ptr())
    logits_MV = matmul(library, held, states.reshape(-1, head.in_features))
    return logits_MV.view(*states.shape[:-1], head.out_features)
