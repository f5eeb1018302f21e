"""A loss that teaches attention where answers are to be seen.

Next-token loss alone does not begin to compare what a question names with what visual tokens show: at first no head
does it at all, and no single weight that changes makes an answer better. But where a record says on which parts of its
image an answer rests (`vl2.data.evidence`), the first head of chosen decoder layers can be told directly: the same part
of what such a token attends to shall fall on each thing that it rests on, and nothing on anything else. What is read
there, and what is made of it, next-token loss learns as before. At inference nothing is different.

Source: that attention can be supervised, arXiv 1609.04186 (alignments in translation); where and how, ours.

S places, n of them with evidence, g things on which they rest, C width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vl2.data.packed import Packed, block_causal_mask
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.attention import LatentAttention, MultiHeadAttention, Reach

HEAD = 0


class AttentionLoss:
    """Watches the attention of some layers during a forward pass, and says how far it is from the evidence."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        """UserError if a layer is not there, or is not whole on this rank."""
        if not isinstance(model, VL2):
            raise UserError('attention_loss_weight needs whole models: engine.parallel = "replicated", no pipeline')
        decoder = model.language.model.layers
        outside = [layer for layer in layers if not 0 <= layer < len(decoder)]
        if outside:
            raise UserError(f"attention_loss_layers must be in 0..{len(decoder) - 1}, got {outside[0]}")
        self._watches = [_Watch(cast(Any, decoder[layer]).self_attn) for layer in layers]

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the losses of the pack that was run last, a mean over the layers; forget what was seen."""
        seen = [watch.take() for watch in self._watches]
        evidence = pack.evidence
        if not len(evidence):
            return torch.zeros((), device=pack.input_ids.device)
        visible_nS = block_causal_mask(pack.cu_seqlens)[evidence.token_n]
        row_g, (group_m, place_m) = evidence.row_g, evidence.pairs_m2.unbind(1)
        shows_gS = torch.zeros(len(row_g), len(pack), dtype=torch.bool, device=row_g.device)
        shows_gS[group_m, place_m] = True
        share_g = 1 / row_g.bincount(minlength=len(evidence))[row_g]
        losses = []
        for q_SC, k_SC, scale in seen:
            score_nS = (q_SC[evidence.token_n] @ k_SC.mT).float() * scale
            total_n = score_nS.masked_fill(~visible_nS, float("-inf")).logsumexp(dim=1)
            on_g = score_nS[row_g].masked_fill(~shows_gS, float("-inf")).logsumexp(dim=1)
            # The divergence of attention from the shares: 0 where every group has its own.
            losses.append((share_g * (total_n[row_g] - on_g + share_g.log())).sum())
        return torch.stack(losses).mean()


class _Watch:
    """Stands between one attention layer and its kernel, and keeps the queries and keys of the first head."""

    def __init__(self, attention: LatentAttention | MultiHeadAttention) -> None:
        self._attend = attention.attend
        self._seen: tuple[Tensor, Tensor, float] | None = None
        attention.attend = self

    def __call__(self, q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, reach: Reach, scale: float) -> Tensor:
        if torch.is_grad_enabled():
            self._seen = q_BHSC[0, HEAD], k_BHLC[0, HEAD], scale
        return self._attend(q_BHSC, k_BHLC, v_BHLC, reach, scale)

    def take(self) -> tuple[Tensor, Tensor, float]:
        seen, self._seen = self._seen, None
        assert seen is not None, "a pack is run forward before its attention is judged"
        return seen
