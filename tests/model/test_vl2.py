"""Layout, projector, counts, casts and initial weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.model.configs import small_model
from vl2.batch import Batch
from vl2.config import preset
from vl2.grid import OverviewFirst, num_tiles, num_visual_tokens
from vl2.model import VL2, init_weights
from vl2.model.layout import NEWLINE_INDEX, SEPARATOR_INDEX, arrange_tiles, image_order, place_visual
from vl2.model.projector import pixel_shuffle

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(grid=grids, side=st.integers(1, 5))
@settings(deadline=None, derandomize=True)
def test_the_layout_reads_the_stitched_picture_row_by_row(grid: tuple[int, int], side: int) -> None:
    columns, rows = grid
    order = image_order(grid, OverviewFirst.of_side(side)).tolist()
    assert len(order) == num_visual_tokens(grid, side)
    head = side * (side + 1)
    assert order[head] == SEPARATOR_INDEX
    assert order[side : head : side + 1] == [NEWLINE_INDEX] * side
    # Give each token the pixel it was cut from, and read the local part back as a picture.
    picture = torch.arange(rows * side * columns * side).view(rows * side, columns * side)
    tiles = [
        picture[r * side : (r + 1) * side, c * side : (c + 1) * side].flatten()
        for r in range(rows)
        for c in range(columns)
    ]
    tokens = torch.cat(tiles) if grid == (1, 1) else torch.cat([torch.full((side * side,), -9), *tiles])
    local = [NEWLINE_INDEX if i == NEWLINE_INDEX else int(tokens[i]) for i in order[head + 1 :]]
    expected = torch.cat((picture, torch.full((rows * side, 1), NEWLINE_INDEX)), dim=1)
    assert local == expected.flatten().tolist()


@given(shapes=st.lists(grids, min_size=1, max_size=4))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_images_are_arranged_one_after_another(shapes: list[tuple[int, int]]) -> None:
    side, width = 2, 3
    count = sum(num_tiles(g) for g in shapes)
    tiles = torch.randn(count, side * side, width, generator=torch.manual_seed(0))
    newline, separator = torch.full((width,), 50.0), torch.full((width,), 70.0)
    together = arrange_tiles(tiles, shapes, newline, separator)
    parts = tiles.split([num_tiles(g) for g in shapes])
    alone = [arrange_tiles(p, [g], newline, separator) for p, g in zip(parts, shapes, strict=True)]
    assert torch.equal(together, torch.cat(alone))
    assert int((together[:, 0] == 70).sum()) == len(shapes)


def test_too_few_tiles_is_an_assertion_with_the_counts() -> None:
    with pytest.raises(AssertionError, match=r"16 tokens of views given, grids \[\(2, 2\)\] need 20"):
        arrange_tiles(torch.zeros(4, 4, 3), [(2, 2)], torch.zeros(3), torch.zeros(3))


def test_slots_and_features_must_agree() -> None:
    mask = torch.tensor([[True, True, False]])
    with pytest.raises(AssertionError, match="2 visual slots in the prompt, 3 visual features"):
        place_visual(torch.zeros(1, 3, 4), mask, torch.zeros(3, 4))


@pytest.mark.parametrize("side", [27, 28])
def test_the_pixel_shuffle_is_an_unfold_of_the_padded_map(side: int) -> None:
    x = torch.randn(2, side, side, 5, generator=torch.manual_seed(0))
    padded = F.pad(x.permute(0, 3, 1, 2), (0, side % 2, 0, side % 2))
    assert torch.equal(pixel_shuffle(x, 2), F.unfold(padded, 2, stride=2).mT)


def test_visual_gradients_reach_encoder_projector_and_separators() -> None:
    model = small_model()
    tiles = torch.randn(5, 3, 56, 56, generator=torch.manual_seed(0))
    tokens = num_visual_tokens((2, 2), 2)
    ids = torch.full((1, tokens + 3), 7)
    mask = torch.zeros(1, tokens + 3, dtype=torch.bool)
    mask[:, 1 : tokens + 1] = True
    batch = Batch(
        input_ids=ids,
        labels=ids,
        attention_mask=torch.ones_like(mask),
        image_mask=mask,
        tiles=tiles,
        grids=torch.tensor([[2, 2]]),
    )
    output = model(batch)
    (output.logits[0, -1].square().sum() + output.balance_loss).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # The pool is carried and never read; the expert stacks are covered by test_moe.
    assert [n for n in without if "attn_pool" not in n] == []
    assert output.expert_load.sum(dim=1).tolist() == [2 * (tokens + 3)] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_changes_weights_but_not_the_expert_bias(dtype: torch.dtype) -> None:
    model = small_model()
    biases = {n: b.clone() for n, b in model.named_buffers()}
    assert biases
    model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for name, bias in model.named_buffers():
        assert bias.dtype == torch.float32
        assert torch.equal(bias, biases[name])


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (VL2(preset("nano")) for _ in range(3))
    init_weights(first, 0)
    init_weights(again, 0)
    init_weights(other, 1)
    pairs = zip(first.state_dict().items(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert not torch.equal(first.language.lm_head.weight, other.language.lm_head.weight)
    width = preset("nano").language_config.hidden_size
    assert first.view_separator.std().item() == pytest.approx(width**-0.5, rel=0.2)
    assert first.language.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_no_weight_is_left_unset() -> None:
    model = VL2(preset("nano"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    init_weights(model, 0)
    assert all(p.isfinite().all() for p in model.parameters())
