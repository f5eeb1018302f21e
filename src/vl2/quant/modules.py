"""Layers with quantized weights, for inference only: a linear layer and the stacked experts.

Codes and scales (see `vl2.quant.formats`) are buffers, so a state dict holds them under the name of the layer: `codes`
and `scales`, or `gate_up_codes`, `gate_up_scales`, `down_codes` and `down_scales`.

Shapes: N rows sorted by expert; E, D, F as in `vl2.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.kernels.library import Library
from vl2.kernels.matmul import int8_linear_rounded, round_rows
from vl2.kernels.prefill_ops import swiglu_rows
from vl2.quant.formats import Kind, Quantized, dequantize, quantize, storage
from vl2.quant.quantized_matmul import FEW_ROWS, has_int8_products, int8_kernels, linear, matmul_few_rows

ExpertLeaf = Literal["gate_up", "down"]


class HoldsCodes(nn.Module):
    """A module whose buffers keep their types when the model is cast, because a cast would change codes and scales."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoldsCodes:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, held in before.items():
            moved = self._buffers[name]
            if held is not None and moved is not None and moved.dtype != held.dtype:
                self._buffers[name] = held.to(device=moved.device)
        return self


class QuantizedLinear(HoldsCodes):
    """A linear layer with a quantized weight and a plain bias."""

    codes: Tensor
    scales: Tensor

    def __init__(
        self, kind: Kind, in_features: int, out_features: int, *, bias: nn.Parameter | None, device: torch.device
    ) -> None:
        """Allocate uninitialized codes and scales. `bias` becomes the layer's bias without a copy."""
        super().__init__()
        self.kind, self.in_features, self.out_features = kind, in_features, out_features
        _allocate(self, "", kind, (out_features, in_features), device)
        self.bias = bias

    @classmethod
    def like(cls, layer: nn.Linear, kind: Kind) -> QuantizedLinear:
        """Return an uninitialized quantized layer of the same shape and on the same device as a plain layer."""
        return cls(kind, layer.in_features, layer.out_features, bias=layer.bias, device=layer.weight.device)

    @torch.no_grad()
    def quantize_from(self, weight_NK: Tensor) -> None:
        """Quantize a weight [N, K] into this layer, in place."""
        quantized = quantize(weight_NK.to(self.codes.device), self.kind)
        self.codes.copy_(quantized.codes)
        self.scales.copy_(quantized.scales)

    @property
    def quantized(self) -> Quantized:
        return Quantized(self.kind, self.codes, self.scales)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the dequantized weight [N, K]."""
        return dequantize(self.quantized, self.out_features, self.in_features, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.quantized, self.out_features, self.in_features, self.bias)

    def extra_repr(self) -> str:
        return f"{self.kind}, in_features={self.in_features}, out_features={self.out_features}"


class QuantizedExperts(HoldsCodes):
    """E gated MLPs (SwiGLU) with quantized, stacked weights. Gate and up projection are one stack [E, 2, ...]."""

    gate_up_codes: Tensor
    gate_up_scales: Tensor
    down_codes: Tensor
    down_scales: Tensor

    def __init__(self, kind: Kind, num_experts: int, width: int, hidden: int, *, device: torch.device) -> None:
        """Allocate uninitialized codes and scales for inputs of `width` (D) and hidden layers of `hidden` (F)."""
        super().__init__()
        self.kind, self.num_experts, self.width, self.hidden = kind, num_experts, width, hidden
        _allocate(self, "gate_up_", kind, (num_experts, 2, hidden, width), device)
        _allocate(self, "down_", kind, (num_experts, width, hidden), device)

    @classmethod
    def like(cls, experts: nn.Module, kind: Kind) -> QuantizedExperts:
        """Return uninitialized quantized experts of the same shape and on the same device as plain experts."""
        E, D, F_ = experts.get_parameter("down_proj").shape
        return cls(kind, E, D, F_, device=experts.get_parameter("down_proj").device)

    @torch.no_grad()
    def quantize_from(self, leaf: ExpertLeaf, expert: int, weight: Tensor, part: int | None = None) -> None:
        """Quantize a matrix of one expert into its place in the stack, in place.

        For `leaf` "gate_up", `part` 0 is the gate projection, 1 is the up projection (each [F, D]), and None is both,
        one above the other [2 F, D]. For "down" the weight is [D, F] and `part` is None.
        """
        if leaf == "gate_up" and part is None:
            weight = weight.unflatten(0, (2, self.hidden))
        codes, scales = (t[expert] if part is None else t[expert, part] for t in self._stack(leaf))
        quantized = quantize(weight.to(codes.device), self.kind)
        codes.copy_(quantized.codes)
        scales.copy_(quantized.scales)

    def quantized(self, leaf: ExpertLeaf, expert: int) -> Quantized:
        codes, scales = self._stack(leaf)
        return Quantized(self.kind, codes[expert], scales[expert])

    def dequantize(self, leaf: ExpertLeaf, expert: int, dtype: torch.dtype) -> Tensor:
        """Return one expert's dequantized matrix: [2 F, D] or [D, F]."""
        shape = (self.hidden, self.width) if leaf == "gate_up" else (self.width, self.hidden)
        weight = dequantize(self.quantized(leaf, expert), *shape, dtype)
        return weight.flatten(0, 1) if leaf == "gate_up" else weight

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Return the outputs [N, D] of rows that are sorted by expert; expert e has `counts_E[e]` of them."""
        counts = counts_E.tolist()
        kernels = int8_kernels(x_ND, min(self.width, self.hidden)) if self.kind == "int8" else None
        # Rounded once for all experts, rows are multiplied by PyTorch, which is slow without 8-bit instructions.
        if kernels is not None and has_int8_products() and max(counts, default=0) > FEW_ROWS:
            return self._run_int8(kernels, x_ND, counts)
        out_ND = torch.empty_like(x_ND)
        for e, (rows, out) in enumerate(zip(x_ND.split(counts), out_ND.split(counts), strict=True)):
            if len(rows):
                out.copy_(self._run(e, rows))
        return out_ND

    def _run(self, expert: int, x_ND: Tensor) -> Tensor:
        both = self.quantized("gate_up", expert)
        gate, up = (Quantized(both.kind, both.codes[part], both.scales[part]) for part in (0, 1))
        gate_NF, up_NF = (linear(x_ND, part, self.hidden, self.width) for part in (gate, up))
        return linear(F.silu(gate_NF) * up_NF, self.quantized("down", expert), self.width, self.hidden)

    def _run_int8(self, kernels: Library, x_ND: Tensor, counts: list[int]) -> Tensor:
        """Run all experts on activations rounded to int8, which are rounded only once for all experts.

        Experts with at most FEW_ROWS rows use the 16-bit activations instead.
        """
        gate_up_EFD, down_EDF = self.gate_up_codes.flatten(1, 2), self.down_codes
        gate_up_N2F = self._multiply_each(kernels, x_ND, counts, gate_up_EFD, self.gate_up_scales.flatten(1, 2))
        return self._multiply_each(kernels, swiglu_rows(gate_up_N2F), counts, down_EDF, self.down_scales)

    def _multiply_each(
        self, kernels: Library, x_ND: Tensor, counts: list[int], codes_EFD: Tensor, scales_EF: Tensor
    ) -> Tensor:
        rounded, out_NF = round_rows(kernels, x_ND), x_ND.new_empty(len(x_ND), codes_EFD.shape[1])
        first = 0
        for expert, count in enumerate(counts):
            rows = slice(first, first + count)
            if count > FEW_ROWS:
                int8_linear_rounded(kernels, rounded[rows], codes_EFD[expert], scales_EF[expert], out_MN=out_NF[rows])
            elif count:
                out_NF[rows] = matmul_few_rows(kernels, x_ND[rows], codes_EFD[expert], scales_EF[expert])
            first += count
        return out_NF

    def _stack(self, leaf: ExpertLeaf) -> tuple[Tensor, Tensor]:
        if leaf == "gate_up":
            return self.gate_up_codes, self.gate_up_scales
        return self.down_codes, self.down_scales

    def extra_repr(self) -> str:
        return f"{self.kind}, num_experts={self.num_experts}, width={self.width}, hidden={self.hidden}"


def _allocate(module: nn.Module, prefix: str, kind: Kind, shape: tuple[int, ...], device: torch.device) -> None:
    for name, leaf in zip(("codes", "scales"), storage(kind, shape), strict=True):
        module.register_buffer(prefix + name, torch.empty(leaf.shape, dtype=leaf.dtype, device=device))
