"""An adapter's layers: around a linear layer and around stacked experts; and which layers each target names.

Source: arXiv 2106.09685 (LoRA), 2312.03732 (rank stabilised: the scale is alpha / sqrt(rank)).

Each computes what its base computes, plus scale * B A x. B starts at zero, so a fresh adapter changes nothing. The
product B A is never built in the forward pass: for experts it would be as large as the experts.

r is the rank; N rows sorted by expert; E, D, F as in `vl2.model`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.errors import UserError
from vl2.model.moe import Experts, grouped_matmul

Target = Literal["attention", "mlp", "experts", "projector", "vision"]

_LAYER = r"language\.model\.layers\.\d+\."
# Which modules a target takes, by their names in the model. The router, the token table and the head are in none:
# an adapted router would have to learn its balance anew, and PEFT and servers treat tables as a case of their own.
PATTERNS: dict[Target, re.Pattern[str]] = {
    "attention": re.compile(_LAYER + r"self_attn\.\w+_(?:proj|with_mqa)"),
    "mlp": re.compile(_LAYER + r"mlp\.(?:shared_experts\.)?(?:gate|up|down)_proj"),
    "experts": re.compile(_LAYER + r"mlp\.experts"),
    "projector": re.compile(r"projector\.layers\.\d+"),
    "vision": re.compile(r"vision\.blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])"),
}
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Rank, strength and place of an adapter."""

    rank: int = 16
    alpha: float = 32.0  # the product of the two matrices is scaled by alpha / rank
    dropout: float = 0.0  # on the input of the low-rank path, in training mode
    is_rank_stabilised: bool = False  # alpha / sqrt(rank)
    targets: tuple[Target, ...] = ("attention", "mlp", "experts")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise UserError(f"rank must be at least 1 and alpha above 0, got {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in 0..1 and below 1, got {self.dropout}")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            got = unknown[0] if unknown else "none"
            raise UserError(f"targets must be some of {', '.join(TARGETS)}, got {got}")

    @property
    def scale(self) -> float:
        return float(self.alpha / (self.rank**0.5 if self.is_rank_stabilised else self.rank))

    def takes(self, module_name: str) -> bool:
        """Whether the adapter has a layer in place of this module."""
        return any(PATTERNS[target].fullmatch(module_name) for target in self.targets)


Delta = dict[str, Tensor]  # name of a base parameter -> what the adapter adds to it, float32


class LoRALinear(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self, base_layer: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer  # or what has been put in its place since: a quantized layer
        self.scale, self.dropout = scale, dropout
        self.lora_A = _zeros(base_layer.weight, rank, base_layer.in_features)
        self.lora_B = _zeros(base_layer.weight, base_layer.out_features, rank)

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        base: Tensor = self.base_layer(x)
        return base + F.linear(F.linear(_dropped(x, self), self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def deltas(self) -> Delta:
        return {"weight": self.lora_B.float() @ self.lora_A.float() * self.scale}


class LoRAExperts(nn.Module):
    """Stacked experts with a low-rank addition to the two matrices of each: A is [E, r, in], B is [E, out, r]."""

    def __init__(self, base_layer: Experts, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale, self.dropout = scale, dropout
        E, two_F, D = base_layer.gate_up_proj.shape
        self.gate_up_lora_A = _zeros(base_layer.gate_up_proj, E, rank, D)
        self.gate_up_lora_B = _zeros(base_layer.gate_up_proj, E, two_F, rank)
        self.down_lora_A = _zeros(base_layer.down_proj, E, rank, two_F // 2)
        self.down_lora_B = _zeros(base_layer.down_proj, E, D, rank)

    @property
    def rank(self) -> int:
        return self.down_lora_A.shape[1]

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Run rows sorted by expert, `counts_E` rows for each."""
        base = self.base_layer
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
