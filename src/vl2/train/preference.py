"""The loss of direct preference optimization (DPO): make a chosen answer likelier and a rejected one less likely.

A pair's two answers are compared with a reference, which is the model without the adapter that is trained:

    margin = beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)))
    loss = -(1 - s) * log sigmoid(margin) - s * log sigmoid(-margin)

where s is the label smoothing, the share of pairs that may be in the wrong order. log p is the sum over the tokens of
the answer.

Source: arXiv 2305.18290, equation 7; label smoothing from E. Mitchell, "A note on DPO with noisy preferences", 2023.

Shapes: S positions, D width, n trained positions, p pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.data.pack import Packed
from vl2.lora.attach import without_lora
from vl2.model import VL2
from vl2.train.blank import run_pack
from vl2.train.loss import token_losses, trained_positions
from vl2.train.stage import Stage


@dataclass(frozen=True, kw_only=True)
class PairLosses:
    """The losses and margins of the pairs of a pack, in its order."""

    loss_p: Tensor
    margin_p: Tensor
    log_ratio_p: Tensor  # log p(chosen) - log p(rejected) of the trained model alone


def preference_loss(
    chosen_p: Tensor,
    rejected_p: Tensor,
    reference_chosen_p: Tensor,
    reference_rejected_p: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the margin of each pair, given the log-probabilities of its answers."""
    margin_p = beta * ((chosen_p - reference_chosen_p) - (rejected_p - reference_rejected_p))
    loss_p = -F.logsigmoid(margin_p) * (1 - label_smoothing)
    if label_smoothing:
        loss_p = loss_p - F.logsigmoid(-margin_p) * label_smoothing
    return loss_p, margin_p


def answer_log_probs(states_SD: Tensor, pack: Packed, weight_VD: Tensor) -> Tensor:
    """Return the log-probability of the trained tokens of each document of a pack, float32 [documents]."""
    loss_n = token_losses(states_SD, pack.labels, weight_VD)
    document_n = torch.bucketize(trained_positions(pack.labels), pack.cu_seqlens[1:], right=True)
    return torch.zeros(len(pack.names), device=loss_n.device).index_add(0, document_n, -loss_n)


def pair_losses(model: VL2, pack: Packed, states_SD: Tensor, stage: Stage) -> PairLosses:
    """Return the losses of a pack whose documents are pairs, chosen before rejected.

    `states_SD` are the hidden states that the model with its adapter gives for the pack. The reference takes another
    forward pass, without gradients.
    """
    assert len(pack.names) % 2 == 0, f"a pack of pairs has {len(pack.names)} documents"
    weight_VD = model.language.lm_head.weight
    with torch.no_grad(), without_lora(model):
        reference = answer_log_probs(run_pack(model, pack).states_BSD[0], pack, weight_VD)
    trained = answer_log_probs(states_SD, pack, weight_VD)
    loss_p, margin_p = preference_loss(
        trained[0::2],
        trained[1::2],
        reference[0::2],
        reference[1::2],
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
    )
    return PairLosses(loss_p=loss_p, margin_p=margin_p, log_ratio_p=trained[0::2] - trained[1::2])
