"""A head of the first decoder layer that looks up words among visual tokens, set before the language model learns.

To find what a question names, attention must compare the words with what the visual tokens show. From random weights
every token attends to some hundred others alike, the few that matter among them, and over a thousand steps of
answers taught nothing of the comparison. But once visual tokens lie near the words for what they show (`heads.py`),
it is linear, and the weights of one head follow from least squares:

- keys are the directions of the latent in which visual tokens of different words differ most;
- the query of a word scores high with the visual tokens that it names, low with the others, lower with text;
- values are the directions of the latent that tell where a thing stands.

The rotary part of the query is zero: near and far count alike. All other weights stay, and training changes these too.

n visual tokens of things, b of nothing, V words, R rank of the latent, C width of a key, D of an embedding.
Source: that attention may start by comparing tokens with themselves, arXiv 2305.09828; the rest is ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.nano.warm_up.classes import NOTHING
from experiments.nano.warm_up.tiles import TileBatch, TileDrawer
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.attention import LatentAttention
from vl2.model.language import DecoderLayer

LAYER, HEAD = 0, 0
SHOWN, OTHER, TEXT = 7.0, -1.0, -4.0  # scores wished for: a hundred tokens weigh less than one that is named
BINS = 10  # of a side of the picture, that values tell apart
FEW = 3  # visual tokens of a word, below which its query stays as it is for any other token
NUM_TILES, AT_A_TIME, EMPTY_PER_TILE = 500, 50, 8
_COMMON = 0.5  # share of the shapes from which on a piece of their names, "的", tells nothing
_KEYS_RIDGE, _QUERIES_RIDGE, _VALUES_RIDGE = 1e-4, 1e-3, 1.0
_WORD_WEIGHT, _TEXT_WEIGHT, _VISUAL_WEIGHT = 5.0, 0.02, 0.02  # of tokens, in fitting the queries


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What visual tokens were found to stand for."""

    tokens_nD: Tensor
    is_word_nV: Tensor  # bool: the words for what the token shows
    places_n4: Tensor  # parts of the picture's sides
    nothing_bD: Tensor  # visual tokens of nothing


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well a head was set: mean scores of words with the visual tokens that they name, and with all others."""

    named: float
    others: float


@torch.no_grad()
def look_at_shapes(
    model: VL2, drawer: TileDrawer, ids_of_classes: Sequence[Sequence[int]], seed: int
) -> tuple[Tensor, Shown]:
    """Draw shapes, and return the words [V] for them, with what the visual tokens then stand for."""
    shapes = drawer.classes.groups["shape"]
    named = [set(ids_of_classes[number]) for number in shapes]
    words = [id for id in sorted(set.union(*named)) if sum(id in ids for ids in named) < _COMMON * len(named)]
    is_word_cV = torch.tensor([[id in ids for id in words] for ids in ids_of_classes])
    drawer = replace(drawer, styles=(), things_share=1.0, lines_share=0.0, pages_share=0.0)
    seen: list[tuple[Tensor, ...]] = []
    for first in range(0, NUM_TILES, AT_A_TIME):
        rngs = [random.Random(f"{seed}/lookup/{number}") for number in range(first, first + AT_A_TIME)]
        batch = TileBatch.of([drawer.draw(rng, 1.0) for rng in rngs])
        tokens_IQD, things_IQ = model.encode_tiles(batch.tiles_I3PP), batch.things_IQK[:, :, 0]
        is_thing_IQ = things_IQ != NOTHING
        generator = torch.Generator().manual_seed(first)
        order_IQ = torch.rand(things_IQ.shape, generator=generator).masked_fill(is_thing_IQ, 2.0).argsort(dim=1)
        empty_IQ = torch.zeros_like(is_thing_IQ).scatter(1, order_IQ[:, :EMPTY_PER_TILE], True) & ~is_thing_IQ
        seen.append(
            (tokens_IQD[is_thing_IQ], things_IQ[is_thing_IQ], batch.first_places_IQ4[is_thing_IQ], tokens_IQD[empty_IQ])
        )
    tokens_nD, things_n, places_n4, nothing_bD = (torch.cat(parts) for parts in zip(*seen, strict=True))
    shown = Shown(tokens_nD=tokens_nD, is_word_nV=is_word_cV[things_n], places_n4=places_n4, nothing_bD=nothing_bD)
    return torch.tensor(words), shown


@torch.no_grad()
def seed_lookup(model: VL2, words: Tensor, shown: Shown) -> Fit:
    """Set one head of a model to look up `words`, token ids [V]. In place. UserError without latent attention."""
    attention = lookup_attention(model)
    normed_ED = _norm(model, model.language.model.embed_tokens.weight)
    words = words[shown.is_word_nV.sum(dim=0) >= FEW]
    is_word_nV = shown.is_word_nV[:, shown.is_word_nV.sum(dim=0) >= FEW]
    if not len(words):
        raise UserError("no word is shown by enough visual tokens to be looked up: draw more tiles")
    normed_nD, normed_bD = _norm(model, shown.tokens_nD), _norm(model, shown.nothing_bD)
    latent_nR, latent_bR, latent_ER = (_latents(attention, x) for x in (normed_nD, normed_bD, normed_ED))
    keys_CR = _keys(attention.nope_dim, latent_nR, latent_bR, latent_ER, is_word_nV)
    key_nC, key_bC, key_EC = latent_nR @ keys_CR.T, latent_bR @ keys_CR.T, latent_ER @ keys_CR.T
    wished_VC = torch.stack(
        [
            _query(attention.scale, [(key_nC[on], SHOWN, 2.0), (key_nC[~on], OTHER, 2.0), (key_bC, OTHER, 1.0),
                                     (key_EC, TEXT, 1.0)])
            for on in is_word_nV.T
        ]
    )  # fmt: skip
    queries_CD = _map_words(normed_ED, words, wished_VC, normed_nD)
    _write(attention, queries_CD, keys_CR, _values(attention.v_dim, latent_nR, shown.places_n4))
    score_nV = key_nC @ (normed_ED[words] @ queries_CD.T).T * attention.scale
    return Fit(named=float(score_nV[is_word_nV].mean()), others=float(score_nV[~is_word_nV].mean()))


def lookup_attention(model: VL2) -> LatentAttention:
    """Return the attention that has the head. UserError for a kind whose head cannot be set."""
    attention = cast("DecoderLayer", model.language.model.layers[LAYER]).self_attn
    if not isinstance(attention, LatentAttention) or attention.compresses_queries:
        raise UserError(
            "looks_up = true needs latent attention with plain queries, as nano and the sizes small and base have"
        )
    return attention


def _norm(model: VL2, tokens_nD: Tensor) -> Tensor:
    normed: Tensor = cast("DecoderLayer", model.language.model.layers[LAYER]).input_layernorm(tokens_nD)
    return normed


def _latents(attention: LatentAttention, normed_nD: Tensor) -> Tensor:
    latent: Tensor = attention.kv_a_layernorm(attention.kv_a_proj_with_mqa(normed_nD)[:, : attention.rank])
    return latent


def _keys(width: int, latent_nR: Tensor, latent_bR: Tensor, latent_ER: Tensor, is_word_nV: Tensor) -> Tensor:
    """Return orthonormal directions: what sets things apart from text and from nothing, then words from each other."""
    mean_R, is_word_nV = latent_nR.mean(dim=0), is_word_nV.to(latent_nR.dtype)
    mean_VR = (is_word_nV.T @ latent_nR) / is_word_nV.sum(dim=0).unsqueeze(1)
    apart_R = torch.stack((mean_R - latent_ER.mean(dim=0), mean_R - latent_bR.mean(dim=0)))
    between_RR = torch.linalg.svd(mean_VR - mean_R).Vh
    keys_CR: Tensor = torch.linalg.qr(torch.cat((apart_R, between_RR[: width - 2])).T).Q.T
    return keys_CR


def _query(scale: float, wished: list[tuple[Tensor, float, float]]) -> Tensor:
    """Return the query, [C], whose scores with groups of keys come nearest to what is wished: (keys, score, weight)."""
    keys_kC = torch.cat([keys for keys, _, _ in wished]) * scale
    score_k = torch.cat([keys.new_full((len(keys),), score) for keys, score, _ in wished])
    weight_k1 = torch.cat([keys.new_full((len(keys), 1), weight / max(1, len(keys))) for keys, _, weight in wished])
    return _ridge(keys_kC, score_k.unsqueeze(1), weight_k1, _KEYS_RIDGE).squeeze(1)


def _map_words(normed_ED: Tensor, words: Tensor, wished_VC: Tensor, visual_nD: Tensor) -> Tensor:
    """Return the matrix [C, D] that makes of words the queries that are wished, and of all else little."""
    weight_E1 = normed_ED.new_full((len(normed_ED), 1), _TEXT_WEIGHT)
    weight_E1[words] = _WORD_WEIGHT
    wished_EC = normed_ED.new_zeros(len(normed_ED), wished_VC.shape[1])
    wished_EC[words] = wished_VC
    inputs = torch.cat((normed_ED, visual_nD))
    wished = torch.cat((wished_EC, wished_EC.new_zeros(len(visual_nD), wished_EC.shape[1])))
    weights = torch.cat((weight_E1, weight_E1.new_full((len(visual_nD), 1), _VISUAL_WEIGHT)))
    return _ridge(inputs, wished, weights, _QUERIES_RIDGE).T


def _values(width: int, latent_nR: Tensor, places_n4: Tensor) -> Tensor:
    """Return the directions [width, R] of the latent that tell best where things stand."""
    bins = F.one_hot((places_n4 * BINS).long().clamp(0, BINS - 1), BINS).flatten(1).to(latent_nR.dtype)
    told = torch.cat((bins, 3 * places_n4), dim=1)
    centered_nR = latent_nR - latent_nR.mean(dim=0)
    readout = _ridge(centered_nR, told - told.mean(dim=0), centered_nR.new_ones(len(told), 1), _VALUES_RIDGE)
    values_vR: Tensor = torch.linalg.svd(readout).U[:, :width].T
    return values_vR


def _ridge(inputs: Tensor, wished: Tensor, weights: Tensor, ridge: float) -> Tensor:
    weighted = inputs * weights
    gram = weighted.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    solution: Tensor = torch.linalg.solve(gram, weighted.T @ wished)
    return solution


def _write(attention: LatentAttention, queries_CD: Tensor, keys_CR: Tensor, values_vR: Tensor) -> None:
    nope, rope, width = attention.nope_dim, attention.rope_dim, attention.v_dim
    queries = attention.q_proj.weight.view(attention.num_heads, nope + rope, -1)[HEAD]
    queries[:nope], queries[nope:] = queries_CD, 0
    attention.kv_b_proj.weight.view(attention.num_heads, nope + width, -1)[HEAD] = torch.cat((keys_CR, values_vR))
