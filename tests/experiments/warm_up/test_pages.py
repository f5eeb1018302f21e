"""Tiles cut from pictures: they are the processor's tiles, and letters stand where they are said to."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments.nano.draw.base import Written
from experiments.nano.draw.charts import Charts
from experiments.nano.draw.frame import PROCESSOR
from experiments.nano.draw.lines import Lines
from experiments.nano.draw.receipts import Receipts
from experiments.nano.draw.tables import Tables
from experiments.nano.warm_up.classes import ASCII, NOTHING, Classes
from experiments.nano.warm_up.pages import PageCutter
from experiments.nano.warm_up.sheet import PADDING
from experiments.nano.warm_up.tiles import TileDrawer
from tests.experiments.nano_inputs import write_inputs
from vl2.grid import UNTILED, Grid
from vl2.process.pixels import draw_views, tile_canvases
from vl2.synth.distort import Distorted, distort
from vl2.synth.source import Dropped

CANVASES = ((168, 168), (336, 168), (168, 336), (336, 336))
SIZE = (300, 140)
# Of each letter the box, which is black in the picture: two words on a line, and one below.
WORDS = {
    "ba": [(200, 20, 220, 40), (225, 20, 245, 40)],
    "ab": [(20, 22, 40, 42), (45, 22, 65, 42)],
    "b": [(100, 90, 130, 120)],
}


@dataclass(frozen=True, kw_only=True)
class Squares:
    drops: float = 0.0

    def page(self, rng: random.Random) -> Written:
        if rng.random() < self.drops:
            raise Dropped("for the test")
        return AsItIs(picture())


class AsItIs(Written):
    def __init__(self, image: Image.Image) -> None:
        super().__init__(image)
        self.texts = {word: (word, boxes) for word, boxes in WORDS.items()}

    def finish(self, rng: random.Random) -> Distorted:
        return distort(self.page.image, rng, 0)


def picture() -> Image.Image:
    image = Image.new("RGB", SIZE, "white")
    for boxes in WORDS.values():
        for x0, y0, x1, y1 in boxes:
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), "black")
    return image


def cutter(drops: float = 0.0, image_scale: float = 1.0) -> PageCutter:
    return PageCutter(sources=(Squares(drops=drops),), canvases=CANVASES, image_scale=image_scale)


@pytest.mark.parametrize(("image_scale", "grid", "num_tiles"), [(1.0, (2, 1), 3), (0.5, (1, 1), 1)])
def test_every_tile_of_the_processor_is_drawn_and_no_other(image_scale: float, grid: Grid, num_tiles: int) -> None:
    wanted = {tile.tobytes() for tile in draw_views(picture(), tile_canvases(grid, 168), PADDING)}
    assert len(wanted) == num_tiles
    drawn = cutter(image_scale=image_scale)
    assert {drawn.draw(random.Random(seed)).image.tobytes() for seed in range(90)} == wanted
    assert draw_views(picture(), tile_canvases(UNTILED, 168), PADDING)[0].tobytes() in wanted


def test_letters_stand_where_it_is_black_in_reading_order_and_the_frame_is_the_picture() -> None:
    for seed in range(20):
        cut = cutter(drops=0.5).draw(random.Random(seed))
        assert "".join(char for char, _ in cut.letters) == "abbab"
        pixels = np.asarray(cut.image.convert("L"))
        left, top, right, bottom = cut.frame
        is_padding = (np.asarray(cut.image) == PADDING).all(axis=2)
        assert not is_padding[top:bottom, left:right].any()
        assert is_padding.sum() == 168 * 168 - (bottom - top) * (right - left)
        inside = 0
        for _, (x0, y0, x1, y1) in cut.letters:
            x, y = int((x0 + x1) / 2), int((y0 + y1) / 2)
            if 0 <= x < 168 and 0 <= y < 168:
                inside += 1
                assert pixels[y, x] < 60
                assert pixels[y, min(167, int(x1) + 2)] > 60, "a letter ends where its box ends"
        assert inside >= 2


def test_a_drawer_marks_the_letters_of_pages_and_depends_on_its_generator_alone() -> None:
    drawer = TileDrawer(classes=Classes(ASCII), texts_en=("a b",), texts_zh=(), pages=cutter(), pages_share=1.0)
    letters = {drawer.classes.character(char) for char in "ab"}
    for seed in range(20):
        one, two = (drawer.draw(random.Random(seed), 1.0) for _ in range(2))
        assert np.array_equal(one.pixels, two.pixels)
        assert np.array_equal(one.things, two.things)
        assert set(np.unique(one.classes)) - {NOTHING} == letters
        assert set(np.unique(one.things)) - {NOTHING} == letters
    easiest = drawer.draw(random.Random(1), 0.0)
    assert set(np.unique(easiest.classes)) - {NOTHING} != letters, "no page is among the easiest tiles"
    without = replace(drawer, pages=None)
    plain = TileDrawer(classes=drawer.classes, texts_en=("a b",), texts_zh=())
    tiles = [drawer.draw(random.Random(7), 0.5) for drawer in (without, plain)]
    assert np.array_equal(tiles[0].pixels, tiles[1].pixels), "other tiles are drawn as before"


def test_pages_are_charts_tables_receipts_and_lines_with_all_their_letters(tmp_path: Path) -> None:
    pages = PageCutter.of_inputs(PROCESSOR, str(write_inputs(tmp_path / "inputs")))
    assert [type(source) for source in pages.sources] == [Charts, Tables, Receipts, Lines, Lines]
    english = replace(pages, sources=[replace(source, languages=("en",)) for source in pages.sources])  # type: ignore[type-var]
    with_letters = sum(bool(english.draw(random.Random(seed)).letters) for seed in range(12))
    assert with_letters == 12
