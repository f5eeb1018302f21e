"""Costs measured on this machine: there for every part, and larger for more work."""

from __future__ import annotations

import torch

from tests.model.configs import small_config
from vl2.plan.unit_sizes import CostInputs, measure_costs


def test_every_part_has_a_cost_per_tile_or_per_token() -> None:
    costs = measure_costs(
        small_config(),
        CostInputs(tiles=2, tokens=64, document=32),
        device=torch.device("cpu"),
        dtype=torch.float32,
        repeats=1,
    )
    for visual in (costs.block, costs.projector):
        assert visual[0] > 0 == visual[1]
    for text in (costs.join, costs.dense_layer, costs.layer, costs.head):
        assert text[1] > 0 == text[0]
    assert costs.backward_ratio > 0
    assert costs.update > 0
