"""What the first rank refuses before any rank loads a weight."""

from __future__ import annotations

import itertools

import pytest

from tests.model.configs import small_config
from vl2.checkpoint.expert_share import expert_bounds
from vl2.errors import UserError
from vl2.expert_parallel.leader import check_experts


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
def test_shares_cover_all_experts_and_differ_by_at_most_one(num_ranks: int) -> None:
    bounds = expert_bounds(8, num_ranks)
    sizes = [last - first for first, last in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, 8)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_more_ranks_than_experts_are_refused() -> None:
    check_experts(small_config("tiny"), 8)
    with pytest.raises(UserError, match="8 experts in a layer, which 9 processes cannot divide"):
        check_experts(small_config("tiny"), 9)
