"""The views of DeepSeek-OCR: the whole page in one view and, in the mode "gundam", also crops of the page.

The modes "tiny", "small", "base" and "large" have one view of 512, 640, 1024 or 1280 px. "gundam" has a view of 1024 px
and, for a picture with a side of more than 640 px, 2 to 6 crops of 640 px. The crops are not padded: the whole picture
is stretched to a grid of crops, whose aspect ratio is the closest to the picture's.

Source: released `process/image_process.py` and `config.py`; arXiv 2510.18234, section 3.2.2. Golden:
tests/golden/ocr/page_grids.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vl2.errors import UserError
from vl2.grid import UNTILED, Grid, ImageLayout, TilesFirst
from vl2.process.pixels import Canvas, CutPlan
from vl2.process.tiling import PAGE_MODES, PageMode, Size, check_max_tiles

VIEW_PX: dict[PageMode, int] = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024}
CROP_PX = 640
MIN_CROPS = 2
MOST_STRETCHED_PX = 640  # views up to this size are stretched to a square, larger ones padded


@dataclass(frozen=True, kw_only=True)
class PageCutter:
    """The cutter of DeepSeek-OCR: it cuts the images of a conversation into overviews and crops."""

    mode: PageMode
    max_crops: int
    crops_several: bool  # whether the images of a conversation with more than one are cropped
    pixels_per_token: int  # along one side

    def __post_init__(self) -> None:
        if self.mode not in PAGE_MODES:
            raise UserError(f"the mode must be one of {', '.join(PAGE_MODES)}, got {self.mode!r}")
        check_max_tiles(self.max_crops)
        if self.max_crops < MIN_CROPS:
            raise UserError(f"max_tiles must be at least {MIN_CROPS} crops of a page, got {self.max_crops}")

    @property
    def layout(self) -> ImageLayout:
        return TilesFirst(
            overview_side=-(-VIEW_PX[self.mode] // self.pixels_per_token),
            tile_side=-(-CROP_PX // self.pixels_per_token),
        )

    @property
    def tile_px(self) -> int:
        return CROP_PX

    @property
    def most_views(self) -> int:
        """The largest number of views of one image."""
        return 1 + self.max_crops if self.mode == "gundam" else 1

    def choose_grids(self, sizes: Sequence[Sequence[Size]]) -> list[Grid]:
        """Return the grid of crops of each image, in order. It is UNTILED for an image without crops."""
        flat = [size for message in sizes for size in message]
        if self.mode != "gundam" or (len(flat) > 1 and not self.crops_several):
            return [UNTILED] * len(flat)
        return [choose_crops(size, self.max_crops) for size in flat]

    def plan(self, grid: Grid) -> CutPlan:
        """Return the canvases of an image with this grid of crops."""
        px = VIEW_PX[self.mode]
        stretches = self.mode != "gundam" and px <= MOST_STRETCHED_PX
        overview = Canvas(size=(px, px), view_px=px, fit="stretch" if stretches else "pad")
        if grid == UNTILED:
            return CutPlan(overviews=(overview,))
        crops = Canvas(size=(grid[0] * CROP_PX, grid[1] * CROP_PX), view_px=CROP_PX, fit="stretch")
        return CutPlan(overviews=(overview,), tiles=(crops,))


def choose_crops(size: Size, max_crops: int) -> Grid:
    """Return the grid of crops with the aspect ratio closest to the picture's, or UNTILED for a small picture.

    Of equally close grids a later one, which has at least as many crops, is taken if the picture has more than half of
    its pixels. Raise ValueError if a side of the picture is below 1 px.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"image sides must be at least 1 px, got {width} x {height}")
    if width <= CROP_PX and height <= CROP_PX:
        return UNTILED
    best, least = UNTILED, float("inf")
    for grid in crop_grids(max_crops):
        columns, rows = grid
        # Compare in float64 as the released code does, because rounding decides which grids tie.
        difference = abs(width / height - columns / rows)
        has_half = width * height > 0.5 * CROP_PX * CROP_PX * columns * rows
        if difference < least or (difference == least and has_half):
            best, least = grid, difference
    return best


def crop_grids(max_crops: int) -> list[Grid]:
    """Return all grids of 2 to `max_crops` crops, those with fewer crops first."""
    sides = range(1, max_crops + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if MIN_CROPS <= columns * rows <= max_crops]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
