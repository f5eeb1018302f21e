"""Visual tokens near the words for what they show: so a language model can look up in a picture what a question names.

A question says "red circle"; to find it, attention must match the embeddings of these words with a visual token. From
answers alone that match is learned very slowly. Here the visual token of a thing is pulled towards the embeddings of
the tokens of its names, in every language that it has a name in, as far as directions go: the embeddings stand still.

V token ids that names are made of, D the width of an embedding, c classes, K things of a visual token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.data.construct.nouns import plural
from vl2.data.construct.sprites import Kind, built_in_kinds
from vl2.train.warm_up.classes import Classes

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
        names[classes.shape(kind.en, kind.colour)] = [english, plural(english), kind.full_name("zh")]
    for kind in (kind for style in styles for kind in style):
        names[classes.sprite(kind.en)] += [kind.en, plural(kind.en), kind.zh]
    # Within a sentence a name follows a space, and is made of other tokens then.
    return [sorted({id for name in of_class for id in (*encode(name), *encode(f" {name}"))}) for of_class in names]
