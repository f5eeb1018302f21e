from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vl2.errors import UserError
from vl2.grid import OverviewFirst
from vl2.process.sample import Sample


def sample(**changes: object) -> Sample:
    """One untiled image of 2 x 2 tokens: 6 + 1 + 2 * 3 = 13 slots, one tile."""
    mask = torch.tensor([False] + [True] * 13 + [False])
    values = {
        "input_ids": torch.arange(15),
        "labels": torch.full((15,), -100),
        "image_mask": mask,
        "tiles": torch.zeros(1, 3, 56, 56),
        "grids": torch.tensor([[1, 1]]),
        "image_sizes": ((30, 20),),
        "layout": OverviewFirst.of_side(2),
        "pad_id": 2,
        "name": "sroie-7",
        **changes,
    }
    return Sample(**values)


def test_a_sample_whose_counts_agree_is_accepted():
    assert len(sample()) == 15
    assert sample().grid_list == [(1, 1)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image_mask": torch.zeros(15, dtype=torch.bool)}, "0 visual slots .* 13 visual tokens"),
        ({"grids": torch.tensor([[2, 1]])}, "13 visual slots .* 17 visual tokens"),
        ({"tiles": torch.zeros(2, 3, 56, 56)}, "2 tiles, but its grids need 1"),
        ({"layout": OverviewFirst.of_side(14)}, "13 visual slots .* 421 visual tokens"),
        ({"labels": torch.full((14,), -100)}, r"length of input_ids \(15\), got 14 and 15"),
        ({"image_sizes": ()}, r"one size per image is needed \(1\), got 0"),
    ],
)
def test_counts_that_disagree_name_the_sample_and_both_counts(changes, why):
    with pytest.raises(UserError, match=why) as caught:
        sample(**changes)
    assert "sample 'sroie-7'" in str(caught.value)


def test_changing_a_sample_checks_it_again():
    with pytest.raises(UserError):
        replace(sample(), tiles=torch.zeros(3, 3, 56, 56))
