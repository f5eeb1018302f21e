"""Next-token loss in chunks of positions, and an auxiliary loss that a recipe names by import path.

4,096 x 129,280 logits are 2 GB in float32, and several times that with their gradient. Only positions that are trained
pass the head at all. The loss is a sum, so the caller divides by the count of trained tokens that it is one of.

S places, n of them trained, D width, V vocabulary.

    [auxiliary_loss]
    function = "my_package.my_module:make_loss"
    weight = 0.5

The function gets the model, as it is placed on this rank and with what is frozen, and the processor, and returns an
`AuxiliaryLoss`. A recipe that names one runs that code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.data.pack import Packed
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.model import VL2
from vl2.optional_imports import import_named
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample

if TYPE_CHECKING:
    from vl2.train.recipe import AuxiliaryLossOptions


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


class AuxiliaryLoss(Protocol):
    """What a step asks of it. The loss of a step is the mean over the terms of all packs on all ranks."""

    def note(self, record: Record, sample: Sample) -> Any:
        """Return what `Packed.notes` shall hold of a sample for this loss. The loader's threads call it."""

    def count(self, pack: Packed) -> int:
        """Return how many terms a pack has."""

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the terms of the pack that was run forward last, as a scalar with its gradient."""


def check_auxiliary_loss(options: AuxiliaryLossOptions) -> None:
    """UserError if the loss that a recipe names cannot be imported: before anything is downloaded or counted."""
    if options.function:
        import_named(options.function, "auxiliary_loss.function")


def open_auxiliary_loss(options: AuxiliaryLossOptions, model: nn.Module, processor: Processor) -> AuxiliaryLoss | None:
    """Return the loss that a recipe names; None if it names none."""
    if not options.function:
        return None
    make = import_named(options.function, "auxiliary_loss.function")
    if not isinstance(model, VL2):
        raise UserError('an auxiliary loss needs whole models: engine.parallel = "replicated", no pipeline')
    loss: AuxiliaryLoss = make(model, processor)
    return loss
