"""The adapter options of a recipe. Importing this module does not load PyTorch (see `recipe.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vl2.errors import UserError
from vl2.lora.spec import TARGETS, LoRASpec, Target

Method = Literal["none", "lora", "qlora"]
BaseKind = Literal["nf4", "int8"]  # as in `vl2.quant.base_modules`, which loads PyTorch


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """A low-rank adapter that is trained instead of the weights."""

    method: Method = "none"
    """none trains the weights themselves, lora an adapter, qlora an adapter over quantized weights"""
    rank: int = 16
    alpha: float = 32.0
    """the adapter is scaled by alpha / rank"""
    dropout: float = 0.0
    rank_stabilised: bool = False
    """scale by alpha / sqrt(rank)"""
    targets: tuple[Target, ...] = TARGETS
    """attention, mlp, experts, projector, vision; all of them by default"""
    base: BaseKind = "nf4"
    """how qlora quantizes the weights"""
    start: str = ""
    """folder of an adapter to continue from, which determines rank, alpha, rank_stabilised and targets"""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"adapter.method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        if self.base not in get_args(BaseKind):
            raise UserError(f"adapter.base must be one of {', '.join(get_args(BaseKind))}, got {self.base!r}")
        self.spec()
        if self.start:
            for name, usual in _ITS_OWN.items():
                if getattr(self, name) != usual:
                    raise UserError(
                        f"adapter.{name} must be left out: the adapter {self.start} determines it; "
                        f"got {getattr(self, name)}"
                    )

    @property
    def is_used(self) -> bool:
        return self.method != "none"

    def spec(self) -> LoRASpec:
        return LoRASpec(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            is_rank_stabilized=self.rank_stabilised,
            targets=self.targets,
        )


# The options that an adapter in `start` determines, with their defaults.
_ITS_OWN = {name: getattr(AdapterOptions, name) for name in ("rank", "alpha", "rank_stabilised", "targets")}
