"""Tiles cut from pictures: they are the processor's tiles, and letters stand where they are said to."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from experiments.nano.warm_up.classes import ASCII, NOTHING, Classes
from experiments.nano.warm_up.pages import PageCutter
from experiments.nano.warm_up.sheet import PADDING
from experiments.nano.warm_up.tiles import TileDrawer
from vl2.grid import UNTILED
from vl2.process.pixels import draw_views, tile_canvases
from vl2.synth.draft import Draft
from vl2.synth.primer_charts import TITLES
from vl2.synth.source import Dropped, Source

CANVASES = ((168, 168), (336, 168), (168, 336), (336, 336))
SIZE = (300, 140)
# Of each letter the box, which is black in the picture: two words on a line, and one below.
WORDS = {
    "ba": [(200, 20, 220, 40), (225, 20, 245, 40)],
    "ab": [(20, 22, 40, 42), (45, 22, 65, 42)],
    "b": [(100, 90, 130, 120)],
}


@dataclass(frozen=True, kw_only=True)
class Squares(Source):
    name: ClassVar[str] = "squares"
    category: ClassVar[str] = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("read",)

    drops: float = 0.0

    def draft(self, rng: random.Random) -> Draft:
        if rng.random() < self.drops:
            raise Dropped("for the test")
        image = Image.new("RGB", SIZE, "white")
        draft = Draft(language="en")
        for word, boxes in WORDS.items():
            draft.show(word, boxes)
            for x0, y0, x1, y1 in boxes:
                ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), "black")
        draft.picture(image)
        return draft


def cutter(drops: float = 0.0) -> PageCutter:
    return PageCutter(sources=(Squares(drops=drops),), canvases=CANVASES)


def test_every_tile_of_the_processor_is_drawn_and_no_other() -> None:
    stored = cutter().sources[0].draft(random.Random(0)).images[0]
    assert (stored.width, stored.height) == SIZE
    image = Image.new("RGB", SIZE, "white")
    for boxes in WORDS.values():
        for x0, y0, x1, y1 in boxes:
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), "black")
    wanted = {tile.tobytes() for tile in draw_views(image, tile_canvases((2, 1), 168), PADDING)}
    assert len(wanted) == 3
    assert {cutter().draw(random.Random(seed)).image.tobytes() for seed in range(60)} == wanted
    assert draw_views(image, tile_canvases(UNTILED, 168), PADDING)[0].tobytes() in wanted


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
    without = replace(drawer, pages=None)
    plain = TileDrawer(classes=drawer.classes, texts_en=("a b",), texts_zh=())
    tiles = [drawer.draw(random.Random(7), 0.5) for drawer in (without, plain)]
    assert np.array_equal(tiles[0].pixels, tiles[1].pixels), "other tiles are drawn as before"


def test_the_primers_pictures_show_all_their_letters_the_title_of_a_chart_too() -> None:
    pages = PageCutter.of_primer(CANVASES, texts_en="", texts_zh="", font_folders=None)
    assert [source.name for source in pages.sources] == [
        "primer_bars",
        "primer_table",
        "primer_receipt",
        "primer_reading",
    ]
    titles = 0
    for source in pages.sources:
        for seed in range(12):
            try:
                draft = source.draft(random.Random(seed))
            except Dropped:
                continue
            shown = [text for text in draft.objects if len(text.label) == len(text.boxes_px)]
            answer = draft.messages[1].parts[0].text or ""
            assert set(answer.replace("\n", " ").split()) <= {word for text in shown for word in text.label.split()}
            titles += source.name == "primer_bars" and shown[-1].label in TITLES["en"]
    assert titles > 3
