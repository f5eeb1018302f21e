"""Specify an adapter: its rank, scale and dropout, and the layers of the model that it adapts.

Source: arXiv 2106.09685 (LoRA), 2312.03732 (rank stabilized: the scale is alpha / sqrt(rank)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from vl2.errors import UserError

Target = Literal["attention", "mlp", "experts", "projector", "vision"]

_LAYER = r"language\.model\.layers\.\d+\."
# The modules of each target, by their names in the model. No target contains the router, the token table or the head:
# an adapted router would have to learn to balance the experts again, and PEFT and servers handle tables as a special
# case.
PATTERNS: dict[Target, re.Pattern[str]] = {
    "attention": re.compile(_LAYER + r"self_attn\.\w+_(?:proj|with_mqa)"),
    "mlp": re.compile(_LAYER + r"mlp\.(?:shared_experts\.)?(?:gate|up|down)_proj"),
    "experts": re.compile(_LAYER + r"mlp\.experts"),
    "projector": re.compile(r"projector\.layers(?:\.\d+)?"),
    "vision": re.compile(
        r"vision\.(?:(?:sam\.)?blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:fc|lin)[12])"
        r"|clip\.transformer\.layers\.\d+\.(?:self_attn\.(?:qkv_proj|out_proj)|mlp\.fc[12])"
        r"|query_encoder\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))"
    ),
}
TARGETS: tuple[Target, ...] = get_args(Target)


def target_of(module_name: str) -> Target:
    """Return the target to which an adapted module belongs."""
    return next(target for target in TARGETS if PATTERNS[target].fullmatch(module_name))


@dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Rank, strength and place of an adapter."""

    rank: int = 16
    alpha: float = 32.0  # the product of the two matrices is scaled by alpha / rank
    dropout: float = 0.0  # on the input of the low-rank path, in training mode
    is_rank_stabilized: bool = False  # alpha / sqrt(rank)
    targets: tuple[Target, ...] = TARGETS

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
        return float(self.alpha / (self.rank**0.5 if self.is_rank_stabilized else self.rank))

    def takes(self, module_name: str) -> bool:
        """Return whether the adapter adapts the module with this name."""
        return any(PATTERNS[target].fullmatch(module_name) for target in self.targets)
