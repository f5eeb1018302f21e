"""The encoder and projector with heads that are thrown away after the warm-up: what is shown, where, and by which name.

`Recognition` has two heads on every patch: which thing it shows, and where that thing ends. Boxes are learned from the
middle of a square, as distances to the four sides.

`Reading` is the projector's part: what each visual token holds, in reading order. A visual token stands for a square of
patches. The things whose middle lies in the square are its things, in the order in which they are read, and one small
head for each place in that order names them. So a letter is named once, by one token, however many patches it covers,
and a language model that reads token after token meets the letters as they stand in the line. Others tell the box of
the first thing: from the middle of the square, and which tenth and which fiftieth of the picture without its padding
each edge falls in, as an answer would write. Where a thing stands must be in its token, for attention does not say
whence it took what it brings.

`Naming` pulls visual tokens near the words for what they show. A question says "red circle"; to find it, attention must
match the embeddings of these words with a visual token. From answers alone that match is learned very slowly. Here the
visual token of a thing is pulled towards the embeddings of the tokens of its names, in every language that it has a
name in, as far as directions go: the embeddings stand still.

I tiles, Q visual tokens of a tile, K things of a token that are told apart; V token ids that names are made of, D the
width of an embedding, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.nano.warm_up.classes import NOTHING, Classes
from experiments.nano.warm_up.sheet import THINGS
from experiments.nano.warm_up.tiles import TileBatch
from vl2.model.projector import LinearProjector, Projector
from vl2.model.vision import VisionEncoder
from vl2.synth.nouns import plural
from vl2.synth.sprites import Kind, built_in_kinds

BOX_SCALE = 4.0  # distances are parts of the tile; so they come to about 1
BOX_WEIGHT = 2.0  # of this loss beside that of the classes


def square_centers(per_side: int) -> Tensor:
    """Return (x, y, x, y) of the middle of every square, row by row, as parts of the tile's side: [squares, 4]."""
    center = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(center, center, indexing="ij")
    return torch.stack((x, y, x, y), dim=-1).flatten(0, 1)


def box_loss(predicted_n4: Tensor, boxes_n4: Tensor, centers_n4: Tensor) -> Tensor:
    """Return the mean loss of boxes (x0, y0, x1, y1), which are parts of the tile's side."""
    return F.smooth_l1_loss(predicted_n4.float(), (boxes_n4 - centers_n4.float()) * BOX_SCALE, beta=0.1)


FIRST_SCALE = 10.0  # of the cosines, learned from there


class Naming(nn.Module):
    """The loss of visual tokens as bags of the words for what they show."""

    def __init__(self, embeddings: Tensor, ids_of_classes: Sequence[Sequence[int]]) -> None:
        """`embeddings` are the language model's; `ids_of_classes` holds for every class the token ids of its names."""
        super().__init__()
        used = sorted({id for ids in ids_of_classes for id in ids})
        column = {id: number for number, id in enumerate(used)}
        is_word_cV = torch.zeros(len(ids_of_classes), len(used))
        for number, ids in enumerate(ids_of_classes):
            is_word_cV[number, [column[id] for id in ids]] = 1
        chosen = embeddings.detach().float()[torch.tensor(used, dtype=torch.int64)]
        self.register_buffer("is_word_cV", is_word_cV, persistent=False)
        self.register_buffer("words_VD", F.normalize(chosen - chosen.mean(dim=0), dim=-1), persistent=False)
        self.is_word_cV: Tensor
        self.words_VD: Tensor
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.zeros(len(used)))

    def forward(self, tokens_nD: Tensor, things_nK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss, and for every word of every visual token's things whether it is among the likeliest.

        Of a visual token with n words the n likeliest count: "的", which every shape has, alone is little.
        """
        wanted_nV = (self.is_word_cV[things_nK].sum(dim=1) > 0).float()
        is_named = wanted_nV.any(dim=1)
        wanted_nV = wanted_nV[is_named]
        cosines_nV = F.normalize(tokens_nD[is_named].float(), dim=-1) @ self.words_VD.float().T
        logits_nV = cosines_nV * self.log_scale.float().exp() + self.bias.float()
        shares_nV = wanted_nV / wanted_nV.sum(dim=1, keepdim=True)
        loss = -(shares_nV * logits_nV.log_softmax(dim=-1)).sum() / max(1, len(wanted_nV))
        place_nV = logits_nV.detach().argsort(dim=1, descending=True).argsort(dim=1)
        is_likely_nV = place_nV < wanted_nV.sum(dim=1, keepdim=True)
        return loss, is_likely_nV[wanted_nV > 0]


def ids_of_names(
    classes: Classes, styles: Sequence[Sequence[Kind]], encode: Callable[[str], Sequence[int]]
) -> list[list[int]]:
    """Return the token ids of the names of every class, one more than there are for the space; characters have none."""
    names: list[list[str]] = [[] for _ in range(len(classes) + 1)]
    for kind in built_in_kinds():
        english = kind.full_name("en")
        names[classes.shape(kind.en, kind.color)] = [english, plural(english), kind.full_name("zh")]
    for kind in (kind for style in styles for kind in style):
        names[classes.sprite(kind.en)] += [kind.en, plural(kind.en), kind.zh]
    # Within a sentence a name follows a space, and is made of other tokens then.
    return [sorted({id for name in of_class for id in (*encode(name), *encode(f" {name}"))}) for of_class in names]


PARTS = (10, 50)  # of a side of the picture, that the edges of a box are told to
EMPTY_PLACES = 0.3  # of empty places to filled ones in the loss


@dataclass(frozen=True, kw_only=True)
class Read:
    """One batch's loss, and for each place that was looked at the right class and whether it was named."""

    loss: Tensor
    wanted_n: Tensor  # int64
    is_right_n: Tensor  # bool
    is_named_n: Tensor  # bool, of the words for what is shown: among the likeliest


class Reading(nn.Module):
    """Names and boxes from visual tokens."""

    def __init__(
        self,
        projector: Projector | LinearProjector,
        width: int,
        num_classes: int,
        tokens_per_side: int,
        naming: Naming,
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
            some = empty[torch.randperm(len(empty), generator=generator)[: max(1, int(len(filled) * EMPTY_PLACES))]]
            asked = torch.cat((filled, some))
            wanted.append(things[asked, place])
            named.append(head(tokens[asked]))
        wanted_n = torch.cat(wanted)
        logits = self.classify(torch.cat(named)).float()
        first = things[:, 0] != NOTHING
        centers = self.center_Q4.expand_as(boxes_IQ4).flatten(0, 1)[first]
        places = box_loss(self.locate(tokens[first]), boxes_IQ4.flatten(0, 1)[first], centers)
        edges = self._edge_loss(tokens[first], places_IQ4.flatten(0, 1)[first])
        naming_loss, is_named = self.naming(tokens, things)
        loss = F.cross_entropy(logits, wanted_n) + BOX_WEIGHT * places + edges + naming_loss
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


EMPTY_PATCHES = 0.25  # of empty patches to shown ones in the loss: most patches are empty, and easy


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One batch's losses, and for each patch that was looked at the right class and whether it was found."""

    class_loss: Tensor
    box_loss: Tensor
    wanted_n: Tensor  # int64
    is_right_n: Tensor  # bool
    read: Read  # the same for the visual tokens

    def loss(self, reading_weight: float = 1.0) -> Tensor:
        return self.class_loss + BOX_WEIGHT * self.box_loss + reading_weight * self.read.loss


class Recognition(nn.Module):
    """Classes and boxes from the features of every patch."""

    def __init__(
        self,
        encoder: VisionEncoder,
        width: int,
        num_classes: int,
        patches_per_side: int,
        reading: Reading,
    ) -> None:
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
        some = empty[torch.randperm(len(empty), generator=generator)[: max(1, int(len(shown) * EMPTY_PATCHES))]]
        looked_at = torch.cat((shown, some))
        logits, wanted_n = self.classify(features[looked_at]).float(), wanted[looked_at]
        centers = self.center_n4.expand_as(batch.boxes_Ip4).flatten(0, 1)[shown]
        read = self.reading(patches_IpC, batch.things_IQK, batch.first_boxes_IQ4, batch.first_places_IQ4, generator)
        return Recognized(
            class_loss=F.cross_entropy(logits, wanted_n),
            box_loss=box_loss(self.locate(features[shown]), batch.boxes_Ip4.flatten(0, 1)[shown], centers),
            wanted_n=wanted_n,
            is_right_n=logits.detach().argmax(dim=-1) == wanted_n,
            read=read,
        )
