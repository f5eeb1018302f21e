"""Sizes of pictures: grids of up to twenty tiles, drawn smaller or larger than the tiles will be.

The processor fits a picture into the grid that keeps most of it, so what is drawn at 24 px may be read at 12. A size is
chosen by its grid, and comes with the factor by which the processor will scale it.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from importlib import resources
from pathlib import Path

from vl2.process.pixels import fit_inside
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.tiling import Size, choose_canvas, scaled

PROCESSOR = PreprocessConfig.from_file(Path(str(resources.files("vl2"))) / "nano/processor_config.json")
TILE_PX, CANVASES = PROCESSOR.tile_px, PROCESSOR.candidate_resolutions
# Columns and rows with how often: a picture of 400 x 300 px is in twelve tiles, one of 560 x 420 px in twenty.
GRIDS = {
    (2, 1): 7, (1, 2): 4, (2, 2): 15, (3, 1): 4, (1, 3): 2, (3, 2): 13, (2, 3): 7, (3, 3): 10, (4, 2): 6, (2, 4): 3,
    (4, 3): 20, (3, 4): 9, (5, 2): 2, (5, 3): 6, (3, 5): 3, (5, 4): 16, (4, 5): 6,
}  # fmt: skip
LEAST_PX, MOST_PX = 96, 1200
ENLARGED = 2.6  # times the grid's own size, at most
ATTEMPTS = 60
USUAL_TILES = 6  # up to which all pictures are kept


@lru_cache(maxsize=4096)
def canvas_of(size: Size) -> Size:
    """Return the canvas that the processor fits a picture into."""
    return choose_canvas(scaled(size, PROCESSOR.image_scale), CANVASES)


def scale_of(size: Size) -> float:
    """Return the pixels that the processor makes of one pixel of a picture."""
    (width, _), _ = fit_inside(size, canvas_of(size))
    return width / size[0]


def choose_size(rng: random.Random, grids: dict[tuple[int, int], int] | None = None) -> Size:
    """Return the size of a picture, (width, height)."""
    shares = grids or GRIDS
    grid = rng.choices(list(shares), list(shares.values()))[0]
    for _ in range(ATTEMPTS):
        factor = math.exp(rng.uniform(math.log(0.72), math.log(ENLARGED))) / PROCESSOR.image_scale
        narrowed = rng.uniform(0.62, 1.0)
        by_width = rng.random() < 0.5
        width = round(grid[0] * TILE_PX * factor * (narrowed if by_width else 1))
        height = round(grid[1] * TILE_PX * factor * (1 if by_width else narrowed))
        size = (width, height)
        if min(size) >= LEAST_PX and max(size) <= MOST_PX and canvas_of(size) == (grid[0] * TILE_PX, grid[1] * TILE_PX):
            return size
    return scaled((grid[0] * TILE_PX, grid[1] * TILE_PX), 1 / PROCESSOR.image_scale)


def is_wanted(rng: random.Random, size: Size) -> bool:
    """Tell whether to keep a picture whose size followed from what it shows: the more tiles, the less often."""
    width, height = canvas_of(size)
    return rng.random() < USUAL_TILES * TILE_PX**2 / (width * height)


def text_px(rng: random.Random, size: Size, least: float = 10.5, most: float = 26.0) -> int:
    """Return a size of letters, in pixels of a picture, that can be read when the processor has scaled it."""
    seen = math.exp(rng.uniform(math.log(least), math.log(most)))
    return max(8, round(seen / scale_of(size)))
