"""Cuts of a model: every unit once and in order, as even as can be."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.config import preset
from vl2.errors import UserError
from vl2.train.parallel.pipeline_split import UnitCosts, divide, split_pipeline, units
from vl2.train.recipe import SplitKind

CONFIG = preset("base")
ROW = units(CONFIG)
COSTS = UnitCosts.by_formula(CONFIG, 600.0).forward(ROW, CONFIG, tiles=10, tokens=4096)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(1, 4), st.data())
def test_the_largest_part_is_as_small_as_any_cut_makes_it(costs: list[int], parts: int, data: st.DataObject) -> None:
    parts = min(parts, len(costs))
    loads = data.draw(st.lists(st.integers(0, 9), min_size=parts, max_size=parts))

    def worst(ends: list[int]) -> float:
        pieces = zip([0, *ends], ends, loads, strict=False)
        return max(sum(costs[start:end]) + load for start, end, load in pieces)

    best = min(worst([*inner, len(costs)]) for inner in combinations(range(1, len(costs)), parts - 1))
    assert worst(divide(costs, parts, loads)) == best


@pytest.mark.parametrize("kind", ["looped", "contiguous", "encoder_first"])
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_every_unit_is_in_one_segment_in_its_order(kind: SplitKind, num_ranks: int) -> None:
    split = split_pipeline(kind, ROW, COSTS, num_ranks)
    assert tuple(unit for segment in split.segments for unit in segment) == ROW
    assert sorted(i for rank in range(num_ranks) for i in split.of_rank(rank)) == list(range(len(split.segments)))


def test_text_goes_through_the_language_model_alone_on_all_ranks() -> None:
    split = split_pipeline("looped", ROW, COSTS, 4)
    kinds = {unit.kind for number in split.text_segments for unit in split.segments[number]}
    assert kinds == {"join", "layer", "head"}
    assert len({number % 4 for number in split.text_segments}) == 4


def test_a_cut_through_the_encoder_is_more_even_than_one_stage_for_it() -> None:
    config = preset("tiny")
    row = units(config)
    costs = UnitCosts.by_formula(config, 600.0).forward(row, config, tiles=10, tokens=4096)
    cost = dict(zip(row, costs, strict=True))

    def worst(kind: SplitKind) -> float:
        split = split_pipeline(kind, row, costs, 4)
        return max(sum(cost[unit] for i in split.of_rank(rank) for unit in split.segments[i]) for rank in range(4))

    even = sum(costs) / 4
    assert worst("contiguous") < 1.15 * even < 1.8 * even < worst("encoder_first")
    assert worst("looped") < 1.15 * even


def test_more_ranks_than_there_is_to_cut_are_refused() -> None:
    with pytest.raises(UserError, match=r"engine\.pipeline must be at most 28"):
        split_pipeline("looped", ROW, COSTS, 29)
