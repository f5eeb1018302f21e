"""Counterparts of the language model's modules that run the Triton kernels of an NVIDIA card.

| module | on the card |
|---|---|
| quantized linear layer, up to MAX_ROWS rows | one launch, which reads the codes |
| the same, more rows | dequantized in parts, as in plain PyTorch: then multiplying takes longer than dequantizing |
| quantized experts, any rows | one launch for each of the two products of all experts |
| plain experts | PyTorch's grouped product, if it has one for the card and the sides; otherwise as quantized ones |
| router | the choice of experts and their weights in one launch; experts in groups are chosen in plain PyTorch |

No module waits for the card. With gradients, and for types other than bfloat16 and float16, each computes what the
plain module does.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from vl2.model import VL2, attention, language, layers, moe
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.runtime import counterparts, gpu_kernels

MAX_ROWS = 64


def with_gpu_kernels(model: VL2) -> VL2:
    """Return a model with the same weights, buffers and hooks whose language model runs the kernels.

    The given model is unchanged. `gpu_kernels.refusal` must have accepted its device.
    """
    return cast(VL2, counterparts.counterpart_of(model, _counterpart))


def fast_experts(experts: nn.Module) -> nn.Module:
    """Return the counterpart of a stack of experts where the kernels can be used, otherwise the experts themselves."""
    device = next(itertools.chain(experts.parameters(), experts.buffers())).device
    return experts if gpu_kernels.refusal(device) is not None else counterparts.counterpart_of(experts, _counterpart)


def _counterpart(kind: type[nn.Module], parent: type[nn.Module] | None) -> type[nn.Module] | None:
    return kind if kind in CONTAINERS else COUNTERPARTS.get(kind)


def applies(x: Tensor) -> bool:
    """Return whether the kernels multiply these activations."""
    return is_on_card(x) and x.dtype in gpu_kernels.DTYPES and not torch.is_grad_enabled()


def is_on_card(x: Tensor) -> bool:
    return x.is_cuda


class GpuQuantizedLinear(QuantizedLinear):
    def forward(self, x: Tensor) -> Tensor:
        if not applies(x) or x.numel() > MAX_ROWS * x.shape[-1]:
            return super().forward(x)
        from vl2.runtime.gpu_kernels.grouped_matmul import Weights, multiply

        weights = Weights.of_layer(self.quantized, self.out_features)
        out_MN = multiply(x.reshape(-1, self.in_features), weights, bias_N=self.bias)
        return out_MN.view(*x.shape[:-1], self.out_features)


class GpuQuantizedExperts(QuantizedExperts):
    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        if not applies(x_ND):
            return super().forward(x_ND, counts_E)
        from vl2.runtime.gpu_kernels.grouped_matmul import Weights, multiply

        # The gate and up projections lie one after the other. In int4 each is padded to whole panels.
        codes, scales = self.gate_up_codes.flatten(1, 2), self.gate_up_scales.flatten(1, 2)
        padded = scales.shape[1] * scales.shape[-1] // 2 if self.kind == "int4" else self.hidden
        both_N2F = multiply(x_ND, Weights(self.kind, codes, scales, 2 * padded), counts_E)
        if padded != self.hidden:
            both_N2F = both_N2F.unflatten(1, (2, padded))[..., : self.hidden].flatten(1)
        down = Weights(self.kind, self.down_codes, self.down_scales, self.width)
        return multiply(moe.swiglu(both_N2F), down, counts_E)


class GpuExperts(moe.Experts):
    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        return grouped_matmul(x_ND, self.gate_up_proj, counts_E)

    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        return grouped_matmul(h_NF, self.down_proj, counts_E)


def grouped_matmul(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert, [N, F], by PyTorch's grouped product or the kernel."""
    if not applies(x_ND) or x_ND.dtype != weight_EFD.dtype or moe.uses_grouped_mm(x_ND, weight_EFD):
        return moe.grouped_matmul(x_ND, weight_EFD, counts_E)
    from vl2.runtime.gpu_kernels.grouped_matmul import Weights, multiply

    return multiply(x_ND, Weights("plain", weight_EFD, None, weight_EFD.shape[1]), counts_E)


class GpuRouter(moe.Router):
    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        has_groups = self.config.topk_method != "greedy" and (self.config.n_group or 1) > 1
        if not applies(x_TD) or has_groups:
            return super().forward(x_TD)
        from vl2.runtime.gpu_kernels.routing import route

        return route(
            self.logits(x_TD),
            self.e_score_correction_bias,
            self.experts_per_token,
            is_sigmoid=self.config.scoring_func == "sigmoid",
            is_normalized=self.config.norm_topk_prob,
            scale=self.config.routed_scaling_factor,
        )


CONTAINERS: tuple[type[nn.Module], ...] = (
    VL2,
    language.LanguageModel,
    language.Decoder,
    nn.ModuleList,
    language.DecoderLayer,
    attention.MultiHeadAttention,
    attention.LatentAttention,
    layers.GatedMLP,
    moe.MoE,
)
COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    QuantizedLinear: GpuQuantizedLinear,
    QuantizedExperts: GpuQuantizedExperts,
    moe.Experts: GpuExperts,
    moe.Router: GpuRouter,
}
