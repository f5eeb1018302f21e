"""What the first rank refuses before any rank loads a weight."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.model.configs import small_config
from vl2.checkpoint.expert_share import expert_bounds
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.config import preset
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


def test_the_table_of_cards_in_the_docs_is_what_the_planner_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "devices.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (tiny|small|base), (bfloat16|int8|int4) \| (.*) \|$", text, re.M)
    assert len(rows) == 8
    for size, weights, cells in rows:
        plan = MemoryPlan.of(preset(size), weights, 4096)
        for count, cell in zip((1, 2, 4), cells.split(" | "), strict=True):
            others = plan.experts / count / 1e9
            first = (plan.other_weights + plan.cache + plan.activations) / 1e9 + others
            held = f"{first:.1f}" if count == 1 else f"{first:.1f} + {others:.1f}"
            card = next(gb for gb in (8, 12, 16, 24, 40, 80) if gb >= first + 1.5)
            assert cell == f"{held} [{card}]", f"{size}, {weights}, {count} cards"
