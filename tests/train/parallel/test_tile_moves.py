"""Moves of tiles even out any counts, with no fewer moves possible and no lower maximum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vl2.train.parallel.tile_balance import imbalance, plan_moves

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@given(COUNTS)
def test_every_rank_encodes_the_mean_rounded_down_or_up(held: list[int]) -> None:
    moves = plan_moves(held)
    low = sum(held) // len(held)
    assert sum(moves.encoded) == sum(held)
    assert all(count in (low, low + (sum(held) % len(held) > 0)) for count in moves.encoded)


@given(COUNTS)
def test_no_rank_gives_more_than_it_has_or_takes_while_it_gives(held: list[int]) -> None:
    moves = plan_moves(held)
    for rank, row in enumerate(moves.moved):
        given_away, taken = sum(row), sum(other[rank] for other in moves.moved)
        assert given_away <= held[rank]
        assert not (given_away and taken)


@given(COUNTS)
def test_only_what_is_above_the_mean_moves(held: list[int]) -> None:
    moves = plan_moves(held)
    above = sum(max(0, count - encoded) for count, encoded in zip(held, moves.encoded, strict=True))
    assert moves.num_moved == above
    # Any assignment with the same maximum must move what lies above it, and fill the others up to the floor.
    low, high = sum(held) // len(held), max(moves.encoded)
    least = max(sum(max(0, count - high) for count in held), sum(max(0, low - count) for count in held))
    assert moves.num_moved == least


def test_the_imbalance_counts_the_busiest_rank_of_every_round() -> None:
    assert imbalance([(3, 1)]) == 1.5
    assert imbalance([(3, 1), (1, 3)]) == 1.5
    assert imbalance([(4, 4)]) == 1.0
    assert imbalance([(0, 0)]) == imbalance([]) == 1.0
