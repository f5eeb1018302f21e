from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.grid import UNTILED, num_tiles, num_visual_tokens
from vl2.process.tiling import Tiling, candidate_canvases, choose_canvas

from .golden import load

RELEASED = [tuple(size) for size in load("resolutions.json")["candidate_resolutions"]]
SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
CONVERSATIONS = st.lists(st.lists(SIZES, max_size=3), min_size=1, max_size=4)


def grids_of(tiling: str, sizes: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return Tiling.parse(tiling).choose_grids(sizes, RELEASED, tile_px=384, side=14)


@pytest.mark.parametrize("case", load("resolutions.json")["cases"], ids=lambda case: "x".join(map(str, case["size"])))
def test_canvas_grid_and_costs_are_the_released_ones(case):
    size = tuple(case["size"])
    assert choose_canvas(size, RELEASED) == tuple(case["best"])
    (grid,) = grids_of("paper", [[size]])
    assert grid == tuple(case["spatial_crop"])
    assert num_visual_tokens(grid, 14) == case["image_tokens"]
    assert num_tiles(grid) == (1 if grid == UNTILED else case["tiles_with_global"])


def test_candidates_of_nine_tiles_are_the_released_list_in_its_order():
    assert list(candidate_canvases(384, 9)) == RELEASED


def test_candidates_of_eighteen_tiles_hold_every_grid_once():
    canvases = candidate_canvases(384, 18)
    assert len(set(canvases)) == len(canvases) == sum(18 // columns for columns in range(1, 19))
    assert all(width * height <= 18 * 384 * 384 for width, height in canvases)


@given(SIZES)
def test_every_image_gets_a_canvas_from_the_list(size):
    assert choose_canvas(size, RELEASED) in RELEASED


@given(SIZES, st.permutations(RELEASED))
def test_the_order_of_the_candidates_decides_nothing_for_usual_sizes(size, shuffled):
    width, height = (1 + side % 1800 for side in size)
    assert choose_canvas((width, height), shuffled) == choose_canvas((width, height), RELEASED)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="at least 1 px"):
        choose_canvas(size, RELEASED)


def test_paper_tiles_two_images_and_no_more():
    big = (1000, 1000)
    assert grids_of("paper", [[big], [big]]) == [(3, 3), (3, 3)]
    assert grids_of("paper", [[big], [big, big]]) == [UNTILED] * 3


@given(CONVERSATIONS, st.lists(SIZES, max_size=3))
def test_per_image_never_changes_an_earlier_image(sizes, later):
    before = grids_of("per-image", sizes)
    assert grids_of("per-image", [*sizes, later])[: len(before)] == before


@given(CONVERSATIONS, st.lists(SIZES, max_size=3), st.integers(421 * 12, 12000))
def test_budget_holds_and_never_changes_an_earlier_message(sizes, later, budget):
    tiling = f"budget:{budget}"
    try:
        before = grids_of(tiling, sizes)
    except UserError:  # earlier messages spent it
        return
    assert sum(num_visual_tokens(grid, 14) for grid in before) <= budget
    assert len(before) == sum(map(len, sizes))
    try:
        after = grids_of(tiling, [*sizes, later])
    except UserError:
        return
    assert after[: len(before)] == before


def test_budget_leaves_an_untiled_view_for_each_later_image_of_the_message():
    big = (1152, 1152)
    assert grids_of("budget:842", [[big, big]]) == [UNTILED, UNTILED]
    assert grids_of(f"budget:{2017 + 421}", [[big, big]]) == [(3, 3), UNTILED]
    assert grids_of("budget:100000", [[big, big]]) == [(3, 3), (3, 3)]


def test_a_budget_too_small_for_untiled_views_names_the_minimum():
    with pytest.raises(UserError, match=r"need at least 842 .* 841 are left"):
        grids_of("budget:841", [[(9, 9), (9, 9)]])
    with pytest.raises(UserError, match=r"message 1 need at least 421 .* 79 are left"):
        grids_of("budget:500", [[(9, 9)], [(9, 9)]])


@pytest.mark.parametrize("text", ["", "Paper", "budget", "budget:", "budget:-1", "budget:0", "budget:1.5", "budget:²"])
def test_an_unknown_tiling_is_refused(text):
    with pytest.raises(UserError):
        Tiling.parse(text)


@pytest.mark.parametrize("text", ["paper", "per-image", "budget:4000"])
def test_a_tiling_prints_as_it_is_written(text):
    assert str(Tiling.parse(text)) == text
