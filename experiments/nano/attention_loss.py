"""A loss that teaches attention where answers stand, in images and in text.

Next-token loss alone does not begin to compare what a question names with what visual tokens show: at first no head
does it at all, and no single weight that changes makes an answer better. But where it is known on which parts of an
image or a text an answer rests (`evidence.py`), the first head of chosen decoder layers can be told directly: the same
part of what such a token attends to shall fall on each thing that it rests on, and nothing on anything else. What is
read there, and what is made of it, next-token loss learns as before. At inference nothing is different.

`guidance.py` chooses the layers.

Source: that attention can be supervised, arXiv 1609.04186 (alignments in translation); where and how, ours.

S places, D of a document, n of them with evidence, g things on which they rest, H layers, C width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.nano.evidence import Evidence, find_evidence, join
from vl2.data.pack import Packed
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.rope import Angles
from vl2.process.processor import Processor
from vl2.process.sample import Sample

HEAD = 0


class AttentionLoss:
    """Watches the attention of some layers during a forward pass, and says how far it is from the evidence."""

    def __init__(self, model: VL2, processor: Processor, layers: Sequence[int]) -> None:
        """UserError if a layer is not there, or nothing of the language model is trained."""
        decoder = model.language.model.layers
        outside = [layer for layer in layers if not 0 <= layer < len(decoder)]
        if outside:
            raise UserError(f"the layers of the attention loss must be in 0..{len(decoder) - 1}, got {outside[0]}")
        if not any(parameter.requires_grad for parameter in decoder.parameters()):
            raise UserError("the attention loss trains the language model, and that is frozen")
        self._watches = [_Watch(cast(Any, decoder[layer]).self_attn) for layer in layers]
        self._processor = processor

    def note(self, record: Record, sample: Sample) -> Evidence:
        """Say where in its images or its text the answers of a sample stand."""
        return find_evidence(record, sample, self._processor.tokenizer, self._processor.config.tile_px)

    def count(self, pack: Packed) -> int:
        """Return the number of tokens with evidence."""
        return sum(len(evidence) for evidence in pack.notes)

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the losses of the pack that was run last, a mean over the layers; forget what was seen."""
        seen = [watch.take() for watch in self._watches]
        evidence = evidence_of(pack)
        if not len(evidence):
            return torch.zeros((), device=pack.input_ids.device)
        share_g = 1 / evidence.row_g.bincount(minlength=len(evidence))[evidence.row_g]
        q_HSC, k_HSC = (torch.stack(parts) for parts in zip(*((q_SC, k_SC) for q_SC, k_SC, _ in seen), strict=True))
        found = [
            _divergence(part, share_g[groups], q_HSC[:, places], k_HSC[:, places], seen[0][2])
            for part, groups, places in _by_document(evidence, pack.cu_seqlens)
        ]
        return torch.stack(found).sum() / len(seen)


def evidence_of(pack: Packed) -> Evidence:
    """Return the evidence of all samples of a pack, on its device."""
    firsts = pack.cu_seqlens.tolist()
    return join(list(zip(firsts, pack.notes, strict=False))).to(pack.input_ids.device)


def _by_document(evidence: Evidence, cu_seqlens: Tensor) -> Iterator[tuple[Evidence, slice, slice]]:
    """Yield the evidence of each document that has any, counted within it; and where its groups and its places lie.

    Nothing is seen beyond a document, and a pack of many has ten times the pairs of places.
    """
    row_edges = torch.searchsorted(evidence.token_n, cu_seqlens)
    group_edges = torch.searchsorted(evidence.row_g, row_edges)
    pair_edges = torch.searchsorted(evidence.pairs_m2[:, 0].contiguous(), group_edges)
    edges = torch.stack((cu_seqlens, row_edges, group_edges, pair_edges), dim=1).tolist()
    for (place, row, group, pair), (place_end, row_end, group_end, pair_end) in pairwise(edges):
        if row < row_end:
            first = torch.tensor([group, place], device=cu_seqlens.device)
            part = Evidence(
                token_n=evidence.token_n[row:row_end] - place,
                row_g=evidence.row_g[group:group_end] - row,
                pairs_m2=evidence.pairs_m2[pair:pair_end] - first,
            )
            yield part, slice(group, group_end), slice(place, place_end)


def _divergence(evidence: Evidence, share_g: Tensor, q_HDC: Tensor, k_HDC: Tensor, scale: float) -> Tensor:
    """Return how far attention is from the shares, summed over tokens and heads; 0 where every group has its own."""
    row_g, (group_m, place_m) = evidence.row_g, evidence.pairs_m2.unbind(1)
    score_HnD = (q_HDC[:, evidence.token_n] @ k_HDC.mT).float() * scale
    later_nD = torch.arange(k_HDC.shape[1], device=row_g.device) > evidence.token_n[:, None]
    hidden_gD = torch.ones(len(row_g), k_HDC.shape[1], dtype=torch.bool, device=row_g.device)
    hidden_gD[group_m, place_m] = False
    total_Hn = score_HnD.masked_fill(later_nD, float("-inf")).logsumexp(dim=2)
    on_Hg = score_HnD[:, row_g].masked_fill(hidden_gD, float("-inf")).logsumexp(dim=2)
    return (share_g * (total_Hn[:, row_g] - on_Hg + share_g.log())).sum()


class _Watch:
    """Follows one attention layer, and makes the queries and keys of its first head once more."""

    def __init__(self, attention: LatentAttention | MultiHeadAttention) -> None:
        self._attention = attention
        self._seen: tuple[Tensor, Angles] | None = None
        attention.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            self._seen = inputs[0], inputs[1]

    def take(self) -> tuple[Tensor, Tensor, float]:
        """Return queries and keys [S, C] of what the layer read last, and the scale of their products."""
        seen, self._seen = self._seen, None
        assert seen is not None, "a pack is run forward before its attention is judged"
        x_1SD, angles = seen
        attention = self._attention
        if isinstance(attention, MultiHeadAttention):
            q_1HSC, (k_1HSC, _) = attention.queries(x_1SD, angles), attention.keys_and_values(x_1SD, angles)
            return q_1HSC[0, HEAD], k_1HSC[0, HEAD], attention.head_dim**-0.5
        q_1HSC, k_1HSC, _ = attention.heads(*attention.queries(x_1SD, angles), attention.latents(x_1SD, angles))
        return q_1HSC[0, HEAD], k_1HSC[0, HEAD], attention.scale
