"""The plan: shares, filled sequences, resumption, and the same global steps on any number of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.synthetic_index import make_source, make_sources
from vl2.data.mixture import PRETRAINING, STAGE_MIXTURES, Group, Mixture
from vl2.data.pack import Packing
from vl2.data.pack_plan import Pack, PackPlan, PlanOptions, Position, StepPlan, tile_bucket
from vl2.errors import UserError

SMALL = Mixture(groups=(Group(share=0.7, categories={"caption": 1.0}), Group(share=0.3, categories={"text": 1.0})))


@pytest.fixture(scope="module")
def plan() -> PackPlan:
    return PackPlan(make_sources(PRETRAINING.categories), PRETRAINING, PlanOptions(packs_per_step=64))


def small_plan(seed: int = 0, packs_per_step: int = 7, packing: Packing | None = None) -> PackPlan:
    sources = [make_source("caption", 300), make_source("text", 200)]
    packing = packing or Packing()
    return PackPlan(
        sources, SMALL, PlanOptions(packs_per_step=packs_per_step, seed=seed, packing=packing, window_packs=25)
    )


def samples_of(pack: Pack) -> list[tuple[str, int]]:
    return [(entry.source, entry.record) for entry in pack.entries]


def samples(step: StepPlan) -> list[tuple[str, int]]:
    return [sample for pack in step.packs for sample in samples_of(pack)]


@pytest.mark.parametrize("stage", ["pretraining", "fine-tuning"])
def test_ten_million_tokens_have_the_asked_shares_within_one_percent_and_fill_their_sequences(stage: str) -> None:
    mixture = STAGE_MIXTURES[stage]
    plan = PackPlan(make_sources(mixture.categories), mixture, PlanOptions(packs_per_step=64))
    seen, num_packs = Counter[str](), 0
    for step in plan.steps():
        num_packs += len(step.packs)
        for pack in step.packs:
            assert pack.num_tokens <= 4096
            for entry in pack.entries:
                seen[entry.source] += entry.num_tokens
        if sum(seen.values()) >= 10_000_000:
            break
    total = sum(seen.values())
    assert total / num_packs / 4096 >= 0.95
    for source, share in zip(plan.sources, plan.shares, strict=True):
        assert abs(seen[source.name] / total - share) <= 0.01 * share


def test_a_window_is_the_same_whatever_was_planned_before(plan: PackPlan) -> None:
    again = PackPlan(plan.sources, plan.mixture, plan.options)
    assert again.window(3) == plan.window(3)
    assert [again.window(n) for n in (0, 1)] == [plan.window(n) for n in (0, 1)]
    assert plan.fill(0) > 0.95
    other = PackPlan(plan.sources, plan.mixture, PlanOptions(packs_per_step=64, seed=1))
    assert other.window(0) != plan.window(0)
    assert other.fingerprint != plan.fingerprint == again.fingerprint


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_a_resumed_plan_goes_on_as_the_uninterrupted_one(seed: int, packs_per_step: int, done: int) -> None:
    whole = list(islice(small_plan(seed, packs_per_step).steps(), done + 3))
    place = whole[done - 1].end if done else Position()
    resumed = list(islice(small_plan(seed, packs_per_step).steps(Position(window=place.window, pack=place.pack)), 3))
    assert [samples(step) for step in resumed] == [samples(step) for step in whole[done:]]


def test_the_packs_do_not_depend_on_the_size_of_steps() -> None:
    by_7 = [pack for step in islice(small_plan(packs_per_step=7).steps(), 30) for pack in step.packs]
    by_21 = [pack for step in islice(small_plan(packs_per_step=21).steps(), 10) for pack in step.packs]
    assert by_7 == by_21


def test_no_sample_comes_twice_within_an_epoch() -> None:
    plan = small_plan()
    seen = Counter(sample for n in range(10) for pack in plan.window(n) for sample in samples_of(pack))
    passes = plan.epochs(Position(window=10))
    for source in plan.sources:
        counts = [seen[source.name, int(record)] for record in source.records]
        assert max(counts) - min(counts) <= 1
        assert min(counts) <= passes[source.key] <= max(counts)


@given(st.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_ranks_only_divide_a_step(num_ranks: int) -> None:
    step = small_plan().step(Position(window=1, pack=2))
    division = step.divide(num_ranks)
    assert sorted(pack for rank in division.ranks for pack in rank) == list(range(len(step.packs)))
    for rank, tiles in zip(division.ranks, division.num_tiles, strict=True):
        assert [step.packs[pack].num_tiles for pack in rank] == list(tiles)
    assert division.num_rounds == -(-len(step.packs) // num_ranks)
    assert division.most_tiles(0) == max(pack.num_tiles for pack in step.packs)
    assert division.most_tiles(division.num_rounds) == 0


def test_ranks_have_more_equal_tiles_than_without_balancing(plan: PackPlan) -> None:
    balanced, dealt = [], []
    for step in islice(plan.steps(), 12):
        tiles = np.array([pack.num_tiles for pack in step.packs])
        fair = tiles.sum() / 8
        balanced.append(max(map(sum, step.divide(8).num_tiles)) / fair)
        dealt.append(max(tiles[rank::8].sum() for rank in range(8)) / fair)
    assert np.mean(balanced) < 1.02 < np.mean(dealt)


def test_packs_hold_about_as_many_tiles_as_each_other(plan: PackPlan) -> None:
    tiles = [pack.num_tiles for pack in plan.window(0)]
    alone = max(int(source.num_tiles.max()) for source in plan.sources)
    assert max(tiles) <= max(alone, 16)
    assert np.mean([count > 16 for count in tiles]) < 0.02
    assert [tile_bucket(n) for n in (0, 1, 4, 5, 19)] == [0, 4, 4, 8, 20]


def test_records_that_fit_no_sequence_are_listed_and_never_drawn() -> None:
    plan, short, text = small_plan(), small_plan(packing=Packing(seq_len=900)), make_source("text", 200)
    expected = [record for record in text.records.tolist() if text.num_tokens[record] > 4096]
    listed = {(lost.source, lost.record) for lost in short.excluded}
    assert len(listed) > len(plan.excluded) == len(expected)
    assert not listed & {sample for n in range(3) for pack in short.window(n) for sample in samples_of(pack)}
    assert "tokens > 900" in short.excluded[0].message
    with pytest.raises(UserError, match="some-caption/caption has none"):
        small_plan(packing=Packing(seq_len=200))


def test_without_packing_a_sequence_holds_one_sample() -> None:
    sources = [make_source("caption", 300)]
    options = PlanOptions(packs_per_step=256, packing=Packing(is_packed=False))
    step = PackPlan(sources, STAGE_MIXTURES["alignment"], options).step(Position())
    assert all(len(pack.entries) == 1 for pack in step.packs)
    assert len(set(samples(step))) == 256


def test_positions_outside_the_plan_are_refused() -> None:
    with pytest.raises(UserError, match="negative"):
        Position(window=-1)
    with pytest.raises(UserError, match="no position 10000"):
        small_plan().step(Position(pack=10_000))
    with pytest.raises(UserError, match="packs_per_step"):
        PlanOptions(packs_per_step=0)
