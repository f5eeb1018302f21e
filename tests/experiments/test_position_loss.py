"""The position loss: where visual tokens are in their image, and that a model learns to tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from experiments.nano.evidence import shown_squares
from experiments.nano.position_loss import WAVES_TILES, PositionLoss, positions
from tests.model.configs import small_model
from tests.train.packs import random_pack
from vl2.errors import UserError
from vl2.grid import UNTILED, Grid, num_visual_tokens
from vl2.model import VL2

GRIDS: tuple[Grid, ...] = ((3, 2), UNTILED)


def a_model() -> VL2:
    return small_model("base", 0)


def test_places_and_waves_are_those_of_the_squares_that_tokens_show() -> None:
    pack = random_pack(a_model().config, [(9, GRIDS[0]), (7, None), (5, GRIDS[1])])
    place_n, wave_nF = positions(pack)
    side, tile_px, expected = pack.layout.tile_side, 84, list[tuple[int, float, float]]()
    for grid, start in zip(GRIDS, (pack.cu_seqlens[0].item(), pack.cu_seqlens[2].item()), strict=True):
        squares = shown_squares((grid[0] * tile_px, grid[1] * tile_px), grid, side, tile_px).tolist()
        assert len(squares) == num_visual_tokens(grid, side)
        for number, (x0, y0, x1, _) in enumerate(squares):
            if number > side * (side + 1) and x1 > x0:  # a local token that shows something
                expected.append((int(start) + 1 + number, x0 / tile_px, y0 / tile_px))
    assert place_n.tolist() == [place for place, *_ in expected]
    for (_, *tiles), wave_F in zip(expected, wave_nF.tolist(), strict=True):
        angles = [math.tau * at / length for at in tiles for length in WAVES_TILES]
        assert wave_F == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-5)


def test_it_is_zero_where_layers_read_the_waves_and_one_where_they_read_nothing() -> None:
    model, told = a_model(), list[Tensor]()
    pack = random_pack(model.config, [(9, (2, 1)), (6, (1, 2))])
    model.language.model.layers[1].self_attn.register_forward_pre_hook(lambda _, args: (told[-1], *args[1:]))
    loss = PositionLoss(model, [1])
    place_n, wave_nF = positions(pack)
    read = torch.zeros(1, len(pack), model.config.language_config.hidden_size)
    told.append(read)
    model.states(pack)
    assert float(loss.take(pack)) == pytest.approx(1.0, abs=0.02)
    right = read.clone()
    right[0, place_n] = wave_nF @ loss.directions_DF.T
    told.append(right)
    model.states(pack)
    assert float(loss.take(pack)) == pytest.approx(0.0, abs=1e-6)


def test_a_model_learns_positions() -> None:
    model = a_model()
    loss = PositionLoss(model, [1])
    pack = random_pack(model.config, [(4, (2, 2)), (5, (3, 1))])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    found = list[float]()
    for _ in range(40):
        model.states(pack)
        value = loss.take(pack)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[-1] < 0.5 * found[0]


def test_without_images_nothing_is_added() -> None:
    model = a_model()
    loss = PositionLoss(model, [1, 2])
    pack = random_pack(model.config, [(9, None)])
    model.states(pack)
    assert float(loss.take(pack)) == 0


@pytest.mark.parametrize("layer", [40, -1])
def test_layers_that_are_not_there_are_refused(layer: int) -> None:
    with pytest.raises(UserError, match=rf"layers of the position loss must be in 0\.\.\d+, got {layer}"):
        PositionLoss(a_model(), [layer])
