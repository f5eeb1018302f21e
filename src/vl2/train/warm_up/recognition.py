"""The encoder with two heads that are thrown away afterwards: which thing a patch shows, and where that thing ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.model.vision import VisionEncoder
from vl2.train.warm_up.boxes import BOX_WEIGHT, box_loss, square_centers
from vl2.train.warm_up.classes import NOTHING
from vl2.train.warm_up.reading import Read, Reading
from vl2.train.warm_up.tiles import TileBatch

EMPTY_SHARE = 0.25  # of empty patches to shown ones in the loss: most patches are empty, and easy


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One batch's losses, and for each patch that was looked at the right class and whether it was found."""

    class_loss: Tensor
    box_loss: Tensor
    wanted_n: Tensor  # int64
    is_right_n: Tensor  # bool
    read: Read | None = None  # the same for the visual tokens, where the projector learns too

    @property
    def loss(self) -> Tensor:
        seen = self.class_loss + BOX_WEIGHT * self.box_loss
        return seen if self.read is None else seen + self.read.loss


class Recognition(nn.Module):
    """Classes and boxes from the features of every patch."""

    def __init__(
        self,
        encoder: VisionEncoder,
        width: int,
        num_classes: int,
        patches_per_side: int,
        reading: Reading | None = None,
    ) -> None:
        """`reading` trains the projector too."""
        super().__init__()
        self.encoder = encoder
        self.reading = reading
        self.classify = nn.Linear(width, num_classes)
        self.locate = nn.Linear(width, 4)
        self.register_buffer("center_n4", square_centers(patches_per_side), persistent=False)
        self.center_n4: Tensor

    def forward(self, batch: TileBatch, generator: torch.Generator) -> Recognized:
        """`generator` picks the empty patches that are looked at."""
        patches_IpC = self.encoder(batch.tiles_I3PP.to(self.classify.weight.dtype))
        features = patches_IpC.flatten(0, 1)
        wanted = batch.classes_Ip.flatten()
        shown, empty = (wanted != NOTHING).nonzero().squeeze(1), (wanted == NOTHING).nonzero().squeeze(1)
        some = empty[torch.randperm(len(empty), generator=generator)[: max(1, int(len(shown) * EMPTY_SHARE))]]
        looked_at = torch.cat((shown, some))
        logits, wanted_n = self.classify(features[looked_at]).float(), wanted[looked_at]
        centers = self.center_n4.expand_as(batch.boxes_Ip4).flatten(0, 1)[shown]
        read = None
        if self.reading is not None:
            read = self.reading(patches_IpC, batch.things_IQK, batch.first_boxes_IQ4, batch.first_places_IQ4, generator)
        return Recognized(
            class_loss=F.cross_entropy(logits, wanted_n),
            box_loss=box_loss(self.locate(features[shown]), batch.boxes_Ip4.flatten(0, 1)[shown], centers),
            wanted_n=wanted_n,
            is_right_n=logits.detach().argmax(dim=-1) == wanted_n,
            read=read,
        )
