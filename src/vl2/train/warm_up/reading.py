"""What each visual token holds, in reading order: the projector's part of the warm-up.

A visual token stands for a square of patches. The things whose middle lies in the square are its things, in the order
in which they are read, and one small head for each place in that order names them. So a letter is named once, by one
token, however many patches it covers, and a language model that reads token after token meets the letters as they stand
in the line. Others tell the box of the first thing: from the middle of the square, and which tenth and which fiftieth
of the picture without its padding each edge falls in, as an answer would write. Where a thing stands must be in its
token, for attention does not say whence it took what it brings.
The heads are thrown away afterwards.

I tiles, Q visual tokens of a tile, K things of a token that are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.model.projector import Projector
from vl2.train.warm_up.boxes import BOX_WEIGHT, box_loss, square_centers
from vl2.train.warm_up.classes import NOTHING
from vl2.train.warm_up.naming import Naming

THINGS = 5  # K: letters of 13 px make four or five to a token of 28 px
PARTS = (10, 50)  # of a side of the picture, that the edges of a box are told to
EMPTY_SHARE = 0.3  # of empty places to filled ones in the loss


@dataclass(frozen=True, kw_only=True)
class Read:
    """One batch's loss, and for each place that was looked at the right class and whether it was named."""

    loss: Tensor
    wanted_n: Tensor  # int64
    is_right_n: Tensor  # bool
    is_named_n: Tensor | None = None  # bool, of the words for what is shown: among the likeliest


class Reading(nn.Module):
    """Names and boxes from visual tokens."""

    def __init__(
        self, projector: Projector, width: int, num_classes: int, tokens_per_side: int, naming: Naming | None = None
    ) -> None:
        """`width` is that of a visual token."""
        super().__init__()
        self.projector = projector
        self.naming = naming
        self.places = nn.ModuleList(nn.Linear(width, width) for _ in range(THINGS))
        self.classify = nn.Linear(width, num_classes)
        self.locate = nn.Linear(width, 4)
        self.edges = nn.ModuleList(nn.Linear(width, 4 * parts) for parts in PARTS)
        self.register_buffer("center_Q4", square_centers(tokens_per_side), persistent=False)
        self.center_Q4: Tensor

    def forward(
        self, patches_IpC: Tensor, things_IQK: Tensor, boxes_IQ4: Tensor, places_IQ4: Tensor, generator: torch.Generator
    ) -> Read:
        """Boxes are parts of the tile, places of the picture. `generator` picks the empty places that are looked at."""
        tokens = self.projector(patches_IpC).flatten(0, 1)
        things = things_IQK.flatten(0, 1)
        wanted, named = list[Tensor](), list[Tensor]()
        for place, head in enumerate(self.places):
            # Behind the last thing of a token one place says that there is no more; the others are not asked.
            is_asked = (
                torch.ones_like(things[:, 0], dtype=torch.bool) if place == 0 else things[:, place - 1] != NOTHING
            )
            filled = (is_asked & (things[:, place] != NOTHING)).nonzero().squeeze(1)
            empty = (is_asked & (things[:, place] == NOTHING)).nonzero().squeeze(1)
            some = empty[torch.randperm(len(empty), generator=generator)[: max(1, int(len(filled) * EMPTY_SHARE))]]
            asked = torch.cat((filled, some))
            wanted.append(things[asked, place])
            named.append(head(tokens[asked]))
        wanted_n = torch.cat(wanted)
        logits = self.classify(torch.cat(named)).float()
        first = things[:, 0] != NOTHING
        centers = self.center_Q4.expand_as(boxes_IQ4).flatten(0, 1)[first]
        places = box_loss(self.locate(tokens[first]), boxes_IQ4.flatten(0, 1)[first], centers)
        edges = self._edge_loss(tokens[first], places_IQ4.flatten(0, 1)[first])
        loss, is_named = F.cross_entropy(logits, wanted_n) + BOX_WEIGHT * places + edges, None
        if self.naming is not None:
            naming_loss, is_named = self.naming(tokens, things)
            loss = loss + naming_loss
        return Read(
            loss=loss,
            wanted_n=wanted_n,
            is_right_n=logits.detach().argmax(dim=-1) == wanted_n,
            is_named_n=is_named,
        )

    def _edge_loss(self, tokens_nD: Tensor, places_n4: Tensor) -> Tensor:
        """Return the mean loss of the parts that the edges fall in."""
        loss = tokens_nD.new_zeros((), dtype=torch.float32)
        for parts, head in zip(PARTS, self.edges, strict=True):
            wanted = (places_n4.flatten() * parts).long().clamp(0, parts - 1)
            loss = loss + F.cross_entropy(head(tokens_nD).float().view(-1, parts), wanted) / len(PARTS)
        return loss
