"""Next-token loss from states, a chunk of positions at a time: the logits of a whole sequence never exist.

4,096 x 129,280 logits are 2 GB in float32, and several times that with their gradient. Only positions that are trained
pass the head at all. The loss is a sum, so the caller divides by the count of trained tokens that it is one of.

S places, n of them trained, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.process.sample import IGNORE_ID

CHUNK = 1024  # positions; 0.5 GB of logits with the largest vocabulary


def trained_positions(labels_S: Tensor) -> Tensor:
    """Return the places that are trained to predict the label of the next one, int64 [n]."""
    return (labels_S[1:] != IGNORE_ID).nonzero().squeeze(1)


def next_token_loss(
    states_SD: Tensor, labels_S: Tensor, weight_VD: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses, float32, and each trained position's own, [n], which carries no gradient.

    Place i is trained to predict labels[i + 1], where that is not IGNORE_ID. Without any such place the sum is 0 and
    has gradients of zeros.
    """
    place_n = trained_positions(labels_S)
    total, loss_n = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        states_SD[place_n], labels_S[place_n + 1], weight_VD, chunk
    )
    return total, loss_n


class _ChunkedLoss(torch.autograd.Function):
    """Sum of cross entropies. The backward pass makes the logits again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, states_nD: Tensor, target_n: Tensor, weight_VD: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        loss_n = torch.empty(len(states_nD), dtype=torch.float32, device=states_nD.device)
        log_sum_n = torch.empty_like(loss_n)
        for rows in _chunks(len(states_nD), chunk):
            logits_cV = F.linear(_rounded_up(states_nD[rows]), weight_VD)[: rows.stop - rows.start].float()
            log_sum_n[rows] = logits_cV.logsumexp(dim=1)
            loss_n[rows] = log_sum_n[rows] - logits_cV.gather(1, target_n[rows, None]).squeeze(1)
        ctx.save_for_backward(states_nD, target_n, weight_VD, log_sum_n)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(loss_n)
        return loss_n.sum(), loss_n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _grad_n: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        states_nD, target_n, weight_VD, log_sum_n = ctx.saved_tensors
        needs_states, _, needs_weight, _ = ctx.needs_input_grad
        grad_nD = torch.empty_like(states_nD) if needs_states else None
        # Chunks are summed in float32: in bfloat16 a long sum would lose the later ones.
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        for rows in _chunks(len(states_nD), ctx.chunk):
            states_cD, num_rows = _rounded_up(states_nD[rows]), rows.stop - rows.start
            # d loss / d logits = softmax - 1 at the target, times the gradient of the sum; 0 in rows added.
            grad_cV = F.linear(states_cD, weight_VD).float()
            grad_cV[num_rows:] = 0.0
            real_cV = grad_cV[:num_rows]
            real_cV.sub_(log_sum_n[rows, None]).exp_()
            real_cV.scatter_add_(1, target_n[rows, None], real_cV.new_full((num_rows, 1), -1.0))
            narrow_cV = grad_cV.mul_(grad).to(weight_VD.dtype)
            if grad_nD is not None:
                grad_nD[rows] = (narrow_cV @ weight_VD)[:num_rows]
            if grad_VD is not None:
                grad_VD += narrow_cV.mT @ states_cD
        return grad_nD, None, None if grad_VD is None else grad_VD.to(weight_VD.dtype), None


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _rounded_up(rows_cD: Tensor, multiple: int = 64) -> Tensor:
    """Add rows of zeros: the CPU compiles its bfloat16 kernels for each number of rows that it meets."""
    return F.pad(rows_cD, (0, 0, 0, -len(rows_cD) % multiple))
