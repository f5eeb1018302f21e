"""One head of the first layer is set to find, among visual tokens, those that lie near a word."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from experiments.nano.warm_up.lookup import PreviewItem, seed_lookup
from vl2.config import preset
from vl2.errors import UserError
from vl2.model import VL2, init_weights
from vl2.model.attention import LatentAttention

WORDS = torch.arange(100, 112)  # six colours and six shapes


def nano() -> VL2:
    model = VL2(preset("nano"))
    init_weights(model, 3)
    return model


def tokens_of(model: VL2, colours: Tensor, shapes: Tensor, places_n4: Tensor) -> Tensor:
    """Return visual tokens near the embeddings of two words, which say along fixed directions where they stand."""
    embedding = model.language.model.embed_tokens.weight.detach()
    generator = torch.Generator().manual_seed(1)
    directions = 0.5 * embedding.std() * torch.randn(4, embedding.shape[1], generator=generator)
    noise = 0.2 * embedding.std() * torch.randn(len(colours), embedding.shape[1], generator=generator)
    return embedding[WORDS[colours]] + embedding[WORDS[6 + shapes]] + places_n4 @ directions + noise


def scene(model: VL2, number: int, seed: int) -> tuple[Tensor, PreviewItem]:
    """Return the words' columns that each token shows, and the tokens."""
    generator = torch.Generator().manual_seed(seed)
    colours, shapes = (torch.randint(6, (number,), generator=generator) for _ in range(2))
    is_word = torch.zeros(number, 12, dtype=torch.bool)
    is_word[torch.arange(number), colours] = True
    is_word[torch.arange(number), 6 + shapes] = True
    places = torch.rand(number, 4, generator=generator)
    nothing = model.language.model.embed_tokens.weight.std() * torch.randn(number, 256, generator=generator)
    shown = PreviewItem(
        tokens_nD=tokens_of(model, colours, shapes, places), is_word_nV=is_word, places_n4=places, nothing_bD=nothing
    )
    return colours, shown


@torch.no_grad()
def attention_of(model: VL2, inputs_SD: Tensor) -> Tensor:
    """Return how the last token attends to each, in the head that was set."""
    layer = model.language.model.layers[0]
    attention = layer.self_attn
    assert isinstance(attention, LatentAttention)
    x = layer.input_layernorm(inputs_SD)
    nope, rope = attention.nope_dim, attention.rope_dim
    query = attention.q_proj(x[-1])[: nope + rope]
    assert not query[nope:].any(), "near and far count alike"
    latent = attention.kv_a_layernorm(attention.kv_a_proj_with_mqa(x)[:, : attention.rank])
    keys = attention.kv_b_proj(latent)[:, :nope]
    return (keys @ query[:nope] * attention.scale).softmax(dim=0)


def test_a_word_attends_to_the_tokens_that_it_names() -> None:
    model = nano()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    _, shown = scene(model, 600, seed=0)
    fit = seed_lookup(model, WORDS, shown)
    assert fit.named > fit.others + 3
    colours, fresh = scene(model, 8, seed=5)
    embedding = model.language.model.embed_tokens.weight.detach()
    for colour in colours.unique().tolist():
        weight = attention_of(model, torch.cat((fresh.tokens_nD, embedding[WORDS[colour]].unsqueeze(0))))
        named = weight[:-1][colours == colour].min()
        assert named > 3 * weight[:-1][colours != colour].max(), "those of the word weigh most"
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {f"language.model.layers.0.self_attn.{name}.weight" for name in ("q_proj", "kv_b_proj")}


def test_values_tell_where_a_thing_stands() -> None:
    model = nano()
    _, shown = scene(model, 600, seed=0)
    seed_lookup(model, WORDS, shown)
    attention = model.language.model.layers[0].self_attn
    assert isinstance(attention, LatentAttention)
    with torch.no_grad():
        x = model.language.model.layers[0].input_layernorm(shown.tokens_nD)
        latent = attention.kv_a_layernorm(attention.kv_a_proj_with_mqa(x)[:, : attention.rank])
        values = attention.kv_b_proj(latent)[:, attention.nope_dim : attention.nope_dim + attention.v_dim]
    inputs = torch.cat((values, torch.ones(len(values), 1)), dim=1)
    told = inputs @ torch.linalg.lstsq(inputs, shown.places_n4).solution
    explained = 1 - (told - shown.places_n4).square().sum() / (shown.places_n4 - 0.5).square().sum()
    assert explained > 0.6


def test_it_needs_latent_attention_and_words_that_are_shown() -> None:
    model = nano()
    _, shown = scene(model, 40, seed=0)
    with pytest.raises(UserError, match="no word is shown by enough"):
        seed_lookup(model, WORDS, replace(shown, is_word_nV=torch.zeros_like(shown.is_word_nV)))
    with torch.device("meta"):
        plain = VL2(preset("tiny"))
    with pytest.raises(UserError, match="needs latent attention"):
        seed_lookup(plain, WORDS, shown)
