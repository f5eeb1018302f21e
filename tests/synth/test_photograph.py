"""Photographs of paper: what was drawn at a place of the page is where the photograph says."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth.catalog import make_source
from vl2.synth.photograph import DESKS, make_desk, photograph, take_picture

SIZE = (420, 560)
MARK_PX = 13


def marked_page(x: int, y: int) -> Image.Image:
    page = Image.new("RGB", SIZE, (246, 244, 238))
    page.paste((230, 0, 230), (x, y, x + MARK_PX, y + MARK_PX))
    return page


def is_mark(image: Image.Image) -> np.ndarray:
    """Return where an image is magenta, which no desk, paper or light is."""
    pixels = np.asarray(image).astype(int)
    return np.minimum(pixels[:, :, 0], pixels[:, :, 2]) - pixels[:, :, 1] > 60


@pytest.mark.parametrize("seed", range(24))
def test_a_mark_is_found_where_the_photograph_says(seed: int) -> None:
    rng = random.Random(seed)
    x, y = rng.randrange(SIZE[0] - MARK_PX), rng.randrange(SIZE[1] - MARK_PX)
    seen = photograph(marked_page(x, y), rng)
    rows, columns = is_mark(seen.image).nonzero()
    middle = seen.place((x + MARK_PX / 2, y + MARK_PX / 2))
    assert np.abs(np.subtract((columns.mean() + 0.5, rows.mean() + 0.5), middle)).max() < 1
    box = seen.move((x, y, x + MARK_PX, y + MARK_PX))
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    # Blur moves the visible edge by less than the 3 px that are allowed.
    assert np.abs(np.subtract(box, found)).max() < 3


@pytest.mark.parametrize("seed", range(12))
def test_the_whole_page_and_some_desk_are_in_the_photograph(seed: int) -> None:
    seen = photograph(Image.new("RGB", SIZE, (255, 255, 255)), random.Random(seed))
    width, height = seen.image.size
    for x in np.linspace(0, SIZE[0], 8):
        for y in (0, SIZE[1]):
            at = seen.place((float(x), float(y)))
            assert 0 < at[0] < width
            assert 0 < at[1] < height


def test_the_shape_of_the_paper_varies_and_the_same_seed_gives_the_same_photograph() -> None:
    page = marked_page(50, 50)
    shapes = {photograph(page, random.Random(seed)).names[1] for seed in range(12)}
    assert shapes == {"flat", "curled", "folded"}
    first, second = (photograph(page, random.Random(3)) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert photograph(page, random.Random(4)).image.tobytes() != first.image.tobytes()


@pytest.mark.parametrize("kind", DESKS)
def test_a_desk_has_the_size_asked_for_and_is_not_plain(kind: str) -> None:
    desk = make_desk(kind, (90, 40), random.Random(0))
    assert desk.size == (90, 40)
    assert len(desk.getcolors(90 * 40) or ()) > 4


def test_the_share_of_photographs_is_a_setting() -> None:
    page = marked_page(9, 9)
    for share, expected in ((0.0, {False}), (1.0, {True})):
        taken = [take_picture(page, random.Random(n), max_distortions=2, photographed=share) for n in range(8)]
        assert {"photograph" in each.names for each in taken} == expected
    with pytest.raises(UserError, match=r"photographed of form must be a share from 0 to 1, got 1\.5"):
        make_source("form", {"photographed": "1.5"})
