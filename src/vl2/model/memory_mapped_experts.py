"""Routed experts whose matrices stay memory-mapped from the released files, for inference.

Stacking the matrices would copy three quarters of the tiny model. Apart from storage, these experts are equivalent to
`vl2.model.moe.Experts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vl2.model.moe import PlainExperts, matmul_each

Pair = tuple[Tensor, Tensor]


class MemoryMappedExperts(PlainExperts):
    """E gated MLPs with two contiguous matrices each, every matrix a parameter of its own."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Take the matrices [2 F, D] and [D, F] of every expert without copying them."""
        super().__init__()
        self.num_experts = len(pairs)
        for expert, matrices in enumerate(pairs):
            for name, matrix in zip(_names(expert), matrices, strict=True):
                self.register_parameter(name, nn.Parameter(matrix))

    def pair(self, expert: int) -> Pair:
        """Return the matrices of one expert."""
        gate_up, down = _names(expert)
        return self.get_parameter(gate_up), self.get_parameter(down)

    def pairs(self) -> list[Pair]:
        """Return the matrices of all experts."""
        return [self.pair(expert) for expert in range(self.num_experts)]

    def addresses(self) -> Tensor:
        """Return the addresses of the gate, up and down projections of all experts, int64 [3, E]."""
        rows = [(both.data_ptr(), both.data_ptr() + both.nbytes // 2, down.data_ptr()) for both, down in self.pairs()]
        return torch.tensor(rows, dtype=torch.int64).T.contiguous()

    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        return matmul_each(x_ND, [gate_up for gate_up, _ in self.pairs()], counts_E)

    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        return matmul_each(h_NF, [down for _, down in self.pairs()], counts_E)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add every projection to the state dict under its released name."""
        for expert, (gate_up, down) in enumerate(self.pairs()):
            gate, up = gate_up.chunk(2)
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                destination[f"{prefix}{expert}.{name}.weight"] = weight if keep_vars else weight.detach()

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


def _names(expert: int) -> tuple[str, str]:
    return f"gate_up_{expert}", f"down_{expert}"
