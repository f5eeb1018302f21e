"""The mixture: realised shares are the asked ones, by tokens, at any length; orders depend on the seed alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.synthetic_index import make_source, make_sources
from vl2.data.index import SourceIndex
from vl2.data.mixture import FINE_TUNING, PRETRAINING, STAGE_MIXTURES, Group, Mixture, MixtureSampler, epoch_order
from vl2.errors import UserError

TWO = Mixture(groups=(Group(share=0.7, categories={"caption": 1.0}), Group(share=0.3, categories={"text": 1.0})))


def tiny_source(category: str, lengths: list[int], name: str = "tiny") -> SourceIndex:
    counts = np.array(lengths, dtype=np.int64)
    zeros = np.zeros(len(lengths), dtype=np.int64)
    return SourceIndex(
        name=name,
        category=category,
        records=np.arange(len(lengths)),
        num_tokens=counts,
        num_trained=counts,
        num_tiles=zeros,
    )


def sampler(mixture: Mixture, sources: list[SourceIndex], seed: int = 0) -> MixtureSampler:
    return MixtureSampler(sources, mixture.shares(sources), seed)


@pytest.mark.parametrize("stage", STAGE_MIXTURES)
def test_the_draw_of_a_stage_has_the_asked_shares_at_any_length(stage: str) -> None:
    mixture = STAGE_MIXTURES[stage]
    sources = make_sources(mixture.categories, 1000)
    shares = mixture.shares(sources)
    assert sum(shares) == pytest.approx(1)
    longest = max(int(source.num_tokens.max()) for source in sources)
    for length in (100_000, 1_000_000, 10_000_000):
        draw = sampler(mixture, sources).draw(0, length)
        realised = np.bincount(draw.sources, draw.num_tokens, len(sources))
        assert np.abs(realised - length * np.array(shares)).max() <= longest


def test_vision_language_to_text_is_70_to_30() -> None:
    for mixture in (PRETRAINING, FINE_TUNING):
        sources = make_sources(mixture.categories, 20)
        shares = mixture.shares(sources)
        text = sum(share for share, source in zip(shares, sources, strict=True) if source.category == "text")
        assert text == pytest.approx(0.3)


def test_an_epoch_holds_every_record_once_before_any_comes_again() -> None:
    sources = [make_source("caption", 50), make_source("text", 30)]
    draw = sampler(TWO, sources).draw(0, 1_000_000)
    for number, source in enumerate(sources):
        rows = draw.rows[draw.sources == number]
        for start in range(0, len(rows) - len(source) + 1, len(source)):
            assert sorted(rows[start : start + len(source)]) == list(range(len(source)))
        assert list(rows[: len(source)]) != list(rows[len(source) : 2 * len(source)])


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=20),
    st.lists(st.integers(1, 500), min_size=1, max_size=20),
    st.lists(st.integers(0, 20_000), min_size=1, max_size=6),
    st.integers(0, 2**63),
)
@settings(max_examples=30, deadline=None)
def test_stretches_drawn_apart_are_the_whole_draw(
    captions: list[int], texts: list[int], cuts: list[int], seed: int
) -> None:
    sources = [tiny_source("caption", captions), tiny_source("text", texts)]
    borders = sorted({0, *cuts, 20_000})
    whole = sampler(TWO, sources, seed).draw(0, 20_000)
    apart = [sampler(TWO, sources, seed).draw(a, b) for a, b in pairwise(borders)]
    for number in (0, 1):  # each source's own order; what comes between sources depends on the cut
        joined = np.concatenate([part.rows[part.sources == number] for part in apart])
        assert joined.tolist() == whole.rows[whole.sources == number].tolist()


def test_the_source_furthest_behind_its_share_comes_first() -> None:
    sources = [tiny_source("caption", [10] * 40), tiny_source("text", [10] * 40)]
    draw = sampler(TWO, sources).draw(0, 400)
    seen = Counter[int]()
    for source in draw.sources.tolist():
        deficits = [share * sum(seen.values()) - seen[i] for i, share in enumerate((0.7, 0.3))]
        assert abs(deficits[0]) <= 10
        seen[source] += 10
    assert seen[0] == 280


def test_an_order_depends_on_seed_source_and_epoch() -> None:
    order = epoch_order(7, "a/text", 0, 100).tolist()
    assert sorted(order) == list(range(100))
    assert order == epoch_order(7, "a/text", 0, 100).tolist()
    assert order[:5] == [96, 43, 71, 0, 20]  # on every machine, with every numpy
    others = [epoch_order(8, "a/text", 0, 100), epoch_order(7, "b/text", 0, 100), epoch_order(7, "a/text", 1, 100)]
    assert all(order != other.tolist() for other in others)


def test_another_source_does_not_change_the_order_of_the_others() -> None:
    caption, text = make_source("caption", 100), make_source("text", 100)
    more = Mixture(groups=(TWO.groups[0], Group(share=0.3, categories={"text": 1.0, "ocr": 1.0})))
    first = sampler(TWO, [caption, text]).draw(0, 100_000)
    second = sampler(more, [make_source("ocr", 100), caption, text]).draw(0, 100_000)
    rows = [first.rows[first.sources == 0].tolist(), second.rows[second.sources == 1].tolist()]
    assert rows[0] == rows[1]


def test_temperature_favours_small_sources_and_weights_overrule_it() -> None:
    sources = [tiny_source("text", [100] * 90, "large"), tiny_source("text", [100] * 10, "small")]
    group = (Group(share=1.0, categories={"text": 1.0}),)
    assert Mixture(groups=group).shares(sources) == pytest.approx((0.9, 0.1))
    assert Mixture(groups=group, temperature=2.0).shares(sources) == pytest.approx((0.75, 0.25))
    given_weights = Mixture(groups=group, sources={"large/text": 1.0, "small/text": 3.0})
    assert given_weights.shares(sources) == pytest.approx((0.25, 0.75))
    with pytest.raises(UserError, match="all sources of category 'text' or none"):
        Mixture(groups=group, sources={"large/text": 1.0}).shares(sources)
    with pytest.raises(UserError, match="'lrge/text'"):
        Mixture(groups=group, sources={"lrge/text": 1.0}).shares(sources)


def test_nothing_is_left_out_in_silence() -> None:
    caption, text = make_source("caption", 10), make_source("text", 10)
    with pytest.raises(UserError, match="'text' has no source"):
        TWO.shares([caption])
    with pytest.raises(UserError, match="'ocr' has no place"):
        TWO.shares([caption, text, make_source("ocr", 10)])
    with pytest.raises(UserError, match="must differ"):
        TWO.shares([caption, text, text])
    assert TWO.only(["caption"]).shares([caption]) == (1.0,)
    with pytest.raises(UserError, match="none of the categories"):
        TWO.only(["gui"])


def test_malformed_mixtures_are_refused() -> None:
    with pytest.raises(UserError, match="one group only"):
        Mixture(groups=(TWO.groups[0], TWO.groups[0]))
    with pytest.raises(UserError, match="got 'captions'"):
        Group(share=1.0, categories={"captions": 1.0})
    with pytest.raises(UserError, match="positive"):
        Group(share=1.0, categories={"caption": 0.0})
    with pytest.raises(UserError, match="temperature"):
        Mixture(groups=TWO.groups, temperature=0.0)
