"""Expert parallelism: each rank of a group holds some of the experts, and tokens are sent to them and back.

A rank sorts its rows by expert, as without parallelism, so the rows for each rank's experts are contiguous. One
all-to-all sends them. The receiving rank sorts the rows by expert again, runs its experts, and sends the results back
the same way. The row counts are exchanged first, so no row is dropped or padded to a capacity. In the backward pass
autograd reverses the exchanges, so each expert's gradient covers the rows of the whole group.

Shapes: M rows of a rank, E experts, n ranks, D width, F hidden width.

Source: arXiv 2006.16668 (expert parallelism); 2412.10302, section on training infrastructure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.model.moe import Experts, grouped_matmul
from vl2.train.ranks import Ranks


def run_over_ranks(experts: Experts, ranks: Ranks, own: Callable[[Tensor], Tensor]) -> None:
    """Make a layer's experts run on the ranks that hold them. In place; `own` returns this rank's part of a weight."""

    def forward(x_MD: Tensor, counts_E: Tensor) -> Tensor:
        counts_nE = counts_E.view(ranks.size, -1)
        one_each = [1] * ranks.size
        received_nE = ranks.exchange(counts_nE, one_each, one_each)
        sent, received = counts_nE.sum(1).tolist(), received_nE.sum(1).tolist()
        rows_MD = ranks.exchange(x_MD, sent, received)
        # The rows arrive sorted by sender and then expert; grouped matmul needs them sorted by expert and then sender.
        expert_nE = torch.arange(counts_nE.shape[1], device=x_MD.device).expand_as(received_nE)
        order_M = expert_nE.flatten().repeat_interleave(received_nE.flatten()).argsort(stable=True)
        place_M = torch.empty_like(order_M).index_copy_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        sorted_MD = _reorder(rows_MD, order_M, place_M)
        own_counts_E = received_nE.sum(0)
        gate_MF, up_MF = grouped_matmul(sorted_MD, own(experts.gate_up_proj), own_counts_E).chunk(2, dim=-1)
        out_MD = grouped_matmul(F.silu(gate_MF) * up_MF, own(experts.down_proj), own_counts_E)
        return ranks.exchange(_reorder(out_MD, place_M, order_M), received, sent)

    experts.forward = forward  # type: ignore[method-assign, assignment]


def _reorder(rows_MD: Tensor, order_M: Tensor, place_M: Tensor) -> Tensor:
    reordered: Tensor = _Reorder.apply(rows_MD, order_M, place_M)  # type: ignore[no-untyped-call]
    return reordered


class _Reorder(torch.autograd.Function):
    """A permutation of rows whose backward pass is the inverse permutation; plain indexing would use a scatter-add."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, order_M: Tensor, place_M: Tensor) -> Tensor:
        ctx.save_for_backward(place_M)
        return rows_MD.index_select(0, order_M)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        (place_M,) = ctx.saved_tensors
        return grad_MD.index_select(0, place_M), None, None
