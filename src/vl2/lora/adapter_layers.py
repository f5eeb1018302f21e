"""The two kinds of adapter layers: one wraps a linear layer, the other wraps the stacked experts of a MoE layer.

Each returns the output of its base layer plus scale * B A x. B is zero at the start, so a new adapter does not change
the outputs. The forward pass never computes the product B A, because for experts it would be as large as the experts.

Shapes: r is the rank; N rows sorted by expert; E, D, F as in `vl2.model`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.model.moe import Experts, grouped_matmul

Delta = dict[str, Tensor]  # from the name of a base parameter to the float32 change that the adapter makes


class LoRALinear(nn.Module):
    """A linear layer with a low-rank adapter: A is [r, in], B is [out, r]."""

    def __init__(self, base_layer: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer  # `quantize_base` may later replace it by a quantized layer
        self.scale, self.dropout = scale, dropout
        self.is_bypassed = False  # see `without_lora`
        self.lora_A = _zeros(base_layer.weight, rank, base_layer.in_features)
        self.lora_B = _zeros(base_layer.weight, base_layer.out_features, rank)

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        base: Tensor = self.base_layer(x)
        if self.is_bypassed:
            return base
        return base + F.linear(F.linear(_dropped(x, self), self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def deltas(self) -> Delta:
        return {"weight": self.lora_B.float() @ self.lora_A.float() * self.scale}


class LoRAExperts(nn.Module):
    """Stacked experts with a low-rank adapter for both matrices of each expert: A is [E, r, in], B is [E, out, r]."""

    def __init__(self, base_layer: Experts, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale, self.dropout = scale, dropout
        self.is_bypassed = False
        E, two_F, D = base_layer.gate_up_proj.shape
        self.gate_up_lora_A = _zeros(base_layer.gate_up_proj, E, rank, D)
        self.gate_up_lora_B = _zeros(base_layer.gate_up_proj, E, two_F, rank)
        self.down_lora_A = _zeros(base_layer.down_proj, E, rank, two_F // 2)
        self.down_lora_B = _zeros(base_layer.down_proj, E, D, rank)

    @property
    def rank(self) -> int:
        return self.down_lora_A.shape[1]

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Return the outputs [N, D] of rows that are sorted by expert; expert e has `counts_E[e]` of them."""
        base = self.base_layer
        if self.is_bypassed:
            unadapted: Tensor = base(x_ND, counts_E)
            return unadapted
        gate_up_NF = base.gate_up(x_ND, counts_E)
        gate_up_NF = gate_up_NF + self._low_rank(x_ND, self.gate_up_lora_A, self.gate_up_lora_B, counts_E)
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        h_NF = F.silu(gate_NF) * up_NF
        return base.down(h_NF, counts_E) + self._low_rank(h_NF, self.down_lora_A, self.down_lora_B, counts_E)

    def _low_rank(self, x: Tensor, a_ErC: Tensor, b_ECr: Tensor, counts_E: Tensor) -> Tensor:
        inner_Nr = grouped_matmul(_dropped(x, self), a_ErC, counts_E)
        return grouped_matmul(inner_Nr, b_ECr, counts_E) * self.scale

    @torch.no_grad()
    def deltas(self) -> Delta:
        pairs = {
            "gate_up_proj": (self.gate_up_lora_B, self.gate_up_lora_A),
            "down_proj": (self.down_lora_B, self.down_lora_A),
        }
        return {name: b.float() @ a.float() * self.scale for name, (b, a) in pairs.items()}


LoRALayer = LoRALinear | LoRAExperts


def _zeros(like: Tensor, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))


def _dropped(x: Tensor, layer: LoRALayer) -> Tensor:
    return F.dropout(x, layer.dropout, training=layer.training) if layer.dropout else x
