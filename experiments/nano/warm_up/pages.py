"""Tiles cut from whole pictures with text, as the processor cuts them: charts, tables, receipts and lines.

A tile full of text teaches letters, but not what they look like between bars and rules, cut by the edge of a tile or
shrunk in the global view. The sources say where each letter stands, so their pictures can be cut up.

Boxes are (x0, y0, x1, y1), in pixels of the picture or of the tile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from experiments.nano.draw.base import Writes, Written
from experiments.nano.draw.charts import Charts
from experiments.nano.draw.lines import Lines
from experiments.nano.draw.receipts import Receipts
from experiments.nano.draw.tables import Tables
from experiments.nano.warm_up.sheet import PADDING
from vl2.data.record import BoxPx
from vl2.process.pixels import cut_tiles, fit_inside, pad_to_canvas
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.tiling import Size, choose_canvas, scaled
from vl2.synth.source import Dropped

ATTEMPTS = 40  # pictures tried, of which some cannot be drawn
GLOBAL_SHARE = 0.15  # of the tiles of a picture with several: the whole picture, small
SAME_LINE = 0.5  # of a letter's height: texts whose upper edges are no further apart are read from left to right


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A tile of a picture."""

    image: Image.Image
    frame: tuple[int, int, int, int]  # where the picture is, not its padding
    letters: list[tuple[str, BoxPx]]  # in reading order, those of other tiles too


@dataclass(frozen=True, kw_only=True)
class PageCutter:
    """Draws pictures of `sources` and cuts them up."""

    sources: Sequence[Writes]
    canvases: Sequence[Size]  # that the processor may fit a picture into; the first is one tile
    image_scale: float = 1.0  # of the processor

    @classmethod
    def of_inputs(cls, processor: PreprocessConfig, inputs: str) -> PageCutter:
        """Return a cutter of charts, tables, receipts and lines; the lines twice as often."""
        lines = Lines(inputs=inputs)
        sources = (Charts(inputs=inputs), Tables(inputs=inputs), Receipts(inputs=inputs), lines, lines)
        return cls(sources=sources, canvases=processor.candidate_resolutions, image_scale=processor.image_scale)

    def draw(self, rng: random.Random) -> Cut:
        """Draw a picture and return one of its tiles, from the generator alone."""
        written = self._written(rng)
        picture = written.finish(rng).image
        tile_px = self.canvases[0][0]
        canvas = choose_canvas(scaled(picture.size, self.image_scale), self.canvases)
        if rng.random() < GLOBAL_SHARE:
            canvas = self.canvases[0]
        across = canvas[0] // tile_px
        number = rng.randrange(across * (canvas[1] // tile_px))
        left, top = number % across * tile_px, number // across * tile_px
        (width, height), (x, y) = fit_inside(picture.size, canvas)
        scale = width / picture.width, height / picture.height
        return Cut(
            image=cut_tiles(pad_to_canvas(picture, canvas, PADDING), tile_px)[number],
            frame=(
                max(0, x - left),
                max(0, y - top),
                min(tile_px, x + width - left),
                min(tile_px, y + height - top),
            ),
            letters=[(char, _moved(box, scale, (x - left, y - top))) for char, box in _letters(written)],
        )

    def _written(self, rng: random.Random) -> Written:
        for _ in range(ATTEMPTS):
            try:
                return rng.choice(self.sources).page(rng)
            except Dropped:
                continue
        raise AssertionError("no page can be drawn")


def _letters(written: Written) -> list[tuple[str, BoxPx]]:
    """Return the letters of all texts with their boxes, line by line."""
    lines: list[list[tuple[str, BoxPx]]] = []
    texts = [(text, boxes) for text, boxes in written.letters() if text]
    for text, boxes in sorted(texts, key=lambda item: item[1][0][1]):
        letters = list(zip(text, boxes, strict=True))
        height = boxes[0][3] - boxes[0][1]
        if lines and boxes[0][1] - lines[-1][0][1][1] <= SAME_LINE * height:
            lines[-1] = sorted([*lines[-1], *letters], key=lambda letter: letter[1][0])
        else:
            lines.append(letters)
    return [letter for line in lines for letter in line]


def _moved(box: BoxPx, scale: tuple[float, float], by: tuple[int, int]) -> BoxPx:
    x0, y0, x1, y1 = box
    return (x0 * scale[0] + by[0], y0 * scale[1] + by[1], x1 * scale[0] + by[0], y1 * scale[1] + by[1])
