"""Compute the next-token loss in chunks of positions, and open the auxiliary loss that a recipe names.

4,096 x 129,280 logits take 2 GB in float32, and several times that with their gradient. Therefore only trained
positions pass through the head, one chunk at a time. The loss is a sum; the caller divides it by the number of trained
tokens of the step.

Shapes: S positions, n trained positions, D width, V vocabulary.

    [auxiliary_loss]
    function = "my_package.my_module:make_loss"
    weight = 0.5

The function gets the model, after freezing and placement on this rank, and the processor. It returns an
`AuxiliaryLoss`. Note that such a recipe runs the code that it names.
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
    """Return the positions that are trained to predict the label of the next position, int64 [n]."""
    return (labels_S[1:] != IGNORE_ID).nonzero().squeeze(1)


def next_token_loss(
    states_SD: Tensor, labels_S: Tensor, weight_VD: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses, float32, and the loss of each trained position, [n], without gradient.

    Position i is trained to predict labels[i + 1] unless that is IGNORE_ID. Without trained positions the sum is 0 and
    its gradients are zero.
    """
    loss_n = token_losses(states_SD, labels_S, weight_VD, chunk)
    return loss_n.sum(), loss_n.detach()


def token_losses(states_SD: Tensor, labels_S: Tensor, weight_VD: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the loss of each trained position, float32 [n], with gradient."""
    place_n = trained_positions(labels_S)
    loss_n: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        states_SD[place_n], labels_S[place_n + 1], weight_VD, chunk
    )
    return loss_n


class _ChunkedLoss(torch.autograd.Function):
    """The cross entropies of positions. The backward pass recomputes the logits instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, states_nD: Tensor, target_n: Tensor, weight_VD: Tensor, chunk: int) -> Tensor:
        loss_n = torch.empty(len(states_nD), dtype=torch.float32, device=states_nD.device)
        log_sum_n = torch.empty_like(loss_n)
        for rows in _chunks(len(states_nD), chunk):
            logits_cV = F.linear(_pad_rows(states_nD[rows]), weight_VD)[: rows.stop - rows.start].float()
            log_sum_n[rows] = logits_cV.logsumexp(dim=1)
            loss_n[rows] = log_sum_n[rows] - logits_cV.gather(1, target_n[rows, None]).squeeze(1)
        ctx.save_for_backward(states_nD, target_n, weight_VD, log_sum_n)
        ctx.chunk = chunk
        return loss_n

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        states_nD, target_n, weight_VD, log_sum_n = ctx.saved_tensors
        needs_states, _, needs_weight, _ = ctx.needs_input_grad
        grad_nD = torch.empty_like(states_nD) if needs_states else None
        # Sum the chunks in float32, because a long bfloat16 sum would lose small terms.
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        for rows in _chunks(len(states_nD), ctx.chunk):
            states_cD, num_rows = _pad_rows(states_nD[rows]), rows.stop - rows.start
            # d loss / d logits = softmax - 1 at the target, times the gradient of the loss; 0 in padding rows.
            grad_cV = F.linear(states_cD, weight_VD).float()
            grad_cV[num_rows:] = 0.0
            real_cV = grad_cV[:num_rows]
            real_cV.sub_(log_sum_n[rows, None]).exp_()
            real_cV.scatter_add_(1, target_n[rows, None], real_cV.new_full((num_rows, 1), -1.0))
            real_cV.mul_(grad_n[rows, None])
            narrow_cV = grad_cV.to(weight_VD.dtype)
            if grad_nD is not None:
                grad_nD[rows] = (narrow_cV @ weight_VD)[:num_rows]
            if grad_VD is not None:
                grad_VD += narrow_cV.mT @ states_cD
        return grad_nD, None, None if grad_VD is None else grad_VD.to(weight_VD.dtype), None


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _pad_rows(rows_cD: Tensor, multiple: int = 64) -> Tensor:
    """Pad with zero rows, because oneDNN compiles its bfloat16 kernels for each number of rows."""
    return F.pad(rows_cD, (0, 0, 0, -len(rows_cD) % multiple))


class AuxiliaryLoss(Protocol):
    """An auxiliary loss. Its value for a step is the mean over the terms of all packs on all ranks."""

    def note(self, record: Record, sample: Sample) -> Any:
        """Return the entry of `Packed.notes` for a sample. Called by the loader's threads."""

    def count(self, pack: Packed) -> int:
        """Return the number of terms of a pack."""

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the terms of the pack whose forward pass was last, as a scalar with its graph."""


def check_auxiliary_loss(options: AuxiliaryLossOptions) -> None:
    """Raise UserError if the loss that a recipe names cannot be imported. Call this before expensive work."""
    if options.function:
        import_named(options.function, "auxiliary_loss.function")


def open_auxiliary_loss(options: AuxiliaryLossOptions, model: nn.Module, processor: Processor) -> AuxiliaryLoss | None:
    """Return the loss that a recipe names, or None. Raise UserError if the model is sharded or in a pipeline."""
    if not options.function:
        return None
    make = import_named(options.function, "auxiliary_loss.function")
    if not isinstance(model, VL2):
        raise UserError('an auxiliary loss needs whole models: engine.parallel = "replicated", no pipeline')
    loss: AuxiliaryLoss = make(model, processor)
    return loss
