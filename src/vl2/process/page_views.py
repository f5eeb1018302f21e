"""The views of the DeepSeek-OCR family: the whole page in one view and, in the mode "gundam", also crops of the page.

`PAGE_RULES` has the sizes of each model. For DeepSeek-OCR, the modes "tiny", "small", "base" and "large" have one view
of 512, 640, 1024 or 1280 px. "gundam" has a view of 1024 px and, for a picture with a side of more than 640 px, 2 to 6
crops of 640 px. DeepSeek-OCR-2 has crops of 768 px, and no modes but those for which it has queries. The crops are not
padded: the whole picture is stretched to a grid of crops, whose aspect ratio is the closest to the picture's.

Source: released `process/image_process.py` and `config.py` of both; arXiv 2510.18234, section 3.2.2. Goldens:
tests/golden/ocr/page_grids.json and page_grids_2.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from vl2.errors import UserError
from vl2.grid import LAYOUTS, UNTILED, Grid, ImageLayout
from vl2.model_kind import ModelKind
from vl2.process.pixels import Canvas, CutPlan
from vl2.process.tiling import PAGE_MODES, PageMode, Size, check_max_tiles

MIN_CROPS = 2


@dataclass(frozen=True, kw_only=True)
class PageRules:
    """The released sizes of a model of the DeepSeek-OCR family, in pixels."""

    view_px: Mapping[PageMode, int]  # side of the view of the whole page, for each mode that the model has
    crop_px: int  # side of a crop; views up to this size are stretched to a square, larger ones padded
    max_crops: int
    crops_several: bool  # whether the images of a conversation with more than one are cropped


_OCR_VIEW_PX: Mapping[PageMode, int] = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024}
PAGE_RULES: dict[ModelKind, PageRules] = {
    "DeepSeek-OCR": PageRules(view_px=_OCR_VIEW_PX, crop_px=640, max_crops=6, crops_several=True),
    "Unlimited-OCR": PageRules(view_px=_OCR_VIEW_PX, crop_px=640, max_crops=32, crops_several=False),
    "DeepSeek-OCR-2": PageRules(
        view_px={"small": 768, "base": 1024, "gundam": 1024}, crop_px=768, max_crops=6, crops_several=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class PageCutter:
    """The cutter of the DeepSeek-OCR family: it cuts the images of a conversation into overviews and crops."""

    kind: ModelKind
    mode: PageMode
    max_crops: int
    pixels_per_token: int  # along one side

    def __post_init__(self) -> None:
        if self.mode not in PAGE_MODES:
            raise UserError(f"the mode must be one of {', '.join(PAGE_MODES)}, got {self.mode!r}")
        if self.mode not in self.rules.view_px:
            raise UserError(f"tiling {self.mode}: {self.kind} has paper and the modes {', '.join(self.rules.view_px)}")
        check_max_tiles(self.max_crops)
        if self.max_crops < MIN_CROPS:
            raise UserError(f"max_tiles must be at least {MIN_CROPS} crops of a page, got {self.max_crops}")

    @property
    def rules(self) -> PageRules:
        return PAGE_RULES[self.kind]

    @property
    def layout(self) -> ImageLayout:
        return LAYOUTS[self.kind](
            overview_side=-(-self.rules.view_px[self.mode] // self.pixels_per_token),
            tile_side=-(-self.rules.crop_px // self.pixels_per_token),
        )

    @property
    def tile_px(self) -> int:
        return self.rules.crop_px

    @property
    def most_views(self) -> int:
        """The largest number of views of one image."""
        return 1 + self.max_crops if self.mode == "gundam" else 1

    def choose_grids(self, sizes: Sequence[Sequence[Size]]) -> list[Grid]:
        """Return the grid of crops of each image, in order. It is UNTILED for an image without crops."""
        flat = [size for message in sizes for size in message]
        if self.mode != "gundam" or (len(flat) > 1 and not self.rules.crops_several):
            return [UNTILED] * len(flat)
        return [choose_crops(size, self.max_crops, self.rules.crop_px) for size in flat]

    def plan(self, grid: Grid) -> CutPlan:
        """Return the canvases of an image with this grid of crops."""
        px, crop_px = self.rules.view_px[self.mode], self.rules.crop_px
        stretches = self.mode != "gundam" and px <= crop_px
        overview = Canvas(size=(px, px), view_px=px, fit="stretch" if stretches else "pad")
        if grid == UNTILED:
            return CutPlan(overviews=(overview,))
        crops = Canvas(size=(grid[0] * crop_px, grid[1] * crop_px), view_px=crop_px, fit="stretch")
        return CutPlan(overviews=(overview,), tiles=(crops,))


def choose_crops(size: Size, max_crops: int, crop_px: int) -> Grid:
    """Return the grid of crops with the aspect ratio closest to the picture's, or UNTILED for a small picture.

    Of equally close grids a later one, which has at least as many crops, is taken if the picture has more than half of
    its pixels. Raise ValueError if a side of the picture is below 1 px.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"image sides must be at least 1 px, got {width} x {height}")
    if width <= crop_px and height <= crop_px:
        return UNTILED
    best, least = UNTILED, float("inf")
    for grid in crop_grids(max_crops):
        columns, rows = grid
        # Compare in float64 as the released code does, because rounding decides which grids tie.
        difference = abs(width / height - columns / rows)
        has_half = width * height > 0.5 * crop_px * crop_px * columns * rows
        if difference < least or (difference == least and has_half):
            best, least = grid, difference
    return best


@cache
def crop_grids(max_crops: int) -> tuple[Grid, ...]:
    """Return all grids of 2 to `max_crops` crops, those with fewer crops first."""
    sides = range(1, max_crops + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if MIN_CROPS <= columns * rows <= max_crops]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
