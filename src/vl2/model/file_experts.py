"""Routed experts whose matrices stay where a released file has them, one by one: for a model that only answers.

To stack them is to copy three quarters of tiny. Otherwise they are what `vl2.model.moe.Experts` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vl2.model.moe import PlainExperts, multiply_each

Pair = tuple[Tensor, Tensor]


class FileExperts(PlainExperts):
    """E gated MLPs with two matrices each."""

    pairs: tuple[Pair, ...]  # [2 F, D] and [D, F] of every expert

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Take contiguous matrices. Nothing is copied."""
        super().__init__()
        self.pairs = tuple(pairs)

    def addresses(self) -> Tensor:
        """Return where the gate, up and down projections of all experts lie, int64 [3, E]."""
        rows = [(both.data_ptr(), both.data_ptr() + both.nbytes // 2, down.data_ptr()) for both, down in self.pairs]
        return torch.tensor(rows, dtype=torch.int64).T.contiguous()

    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        return multiply_each(x_ND, [gate_up for gate_up, _ in self.pairs], counts_E)

    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        return multiply_each(h_NF, [down for _, down in self.pairs], counts_E)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FileExperts:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.pairs = tuple((fn(gate_up), fn(down)) for gate_up, down in self.pairs)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Give every projection by its released name."""
        for expert, (gate_up, down) in enumerate(self.pairs):
            gate, up = gate_up.chunk(2)
            for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                destination[f"{prefix}{expert}.{name}.weight"] = weight

    def extra_repr(self) -> str:
        return f"num_experts={len(self.pairs)}"
