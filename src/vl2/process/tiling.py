"""Dynamic tiling: choose the canvas that an image is padded to, and which images of a conversation are tiled at all.

Sizes are (width, height) in pixels, grids are (columns, rows) of local tiles, and costs are in visual tokens.

Source: arXiv 2412.10302, dynamic tiling strategy. Golden: tests/golden/reference/processor/resolutions.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vl2.errors import UserError
from vl2.grid import UNTILED, Grid, num_visual_tokens

Size = tuple[int, int]  # (width, height) in pixels, the order PIL uses

PageMode = Literal["tiny", "small", "base", "large", "gundam"]
TilingRule = Literal["paper", "per-image", "budget"] | PageMode
PAGE_MODES: tuple[PageMode, ...] = get_args(PageMode)

MAX_TILED_IMAGES = 2  # "paper": with more images in the conversation, none is tiled
MOST_TILES = 256  # of one image; no model's context has room for more


def choose_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """Return the canvas that keeps most of the image's own pixels, then wastes the least area.

    Ties go to the earlier canvas. Raise ValueError if a side of the image is below 1 px.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"image sides must be at least 1 px, got {width} x {height}")

    def score(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        # Truncate each side in float64 before multiplying, as the released model did: exact
        # fractions would send 18 sizes up to 1800 x 1800 to another canvas.
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=score)  # max() returns the first of equals


def scaled(size: Size, scale: float) -> Size:
    """Return the size of an image `scale` times as large, at least 1 px a side."""
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def check_max_tiles(max_tiles: int) -> None:
    """Raise UserError unless `max_tiles` is in 1..MOST_TILES."""
    if max_tiles < 1:
        raise UserError(f"max_tiles must be at least 1, got {max_tiles}")
    if max_tiles > MOST_TILES:
        raise UserError(f"max_tiles must be at most {MOST_TILES}, got {max_tiles}")


def candidate_canvases(tile_px: int, max_tiles: int) -> tuple[Size, ...]:
    """Return every canvas of at most `max_tiles` tiles in the order of the released list (9 tiles; InfoVQA uses 18)."""
    check_max_tiles(max_tiles)
    if tile_px < 1:
        raise UserError(f"tile_px must be at least 1, got {tile_px}")
    grids = [(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    grids.sort(key=lambda grid: (grid[0] * grid[1], min(grid), grid))
    return tuple((columns * tile_px, rows * tile_px) for columns, rows in grids)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The rule that decides which images of a conversation are tiled.

    The DeepSeek-OCR family has "paper" and the modes of `page_views`. DeepSeek-VL2 has three rules:
    "paper" tiles all images, but none if the conversation has more than two (the released rule).
    "per-image" tiles all images of any number.
    "budget" spends at most `budget_tokens` visual tokens, image by image in the order of the turns. It reserves tokens
    only for the later images of the same message, so a later turn never changes an earlier image.
    """

    rule: TilingRule = "paper"
    budget_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in (allowed := ("paper", "per-image", "budget", *PAGE_MODES)):
            raise UserError(f"tiling must be one of {', '.join(allowed)}, got {self.rule!r}")
        if (self.rule == "budget") != (self.budget_tokens is not None):
            raise UserError(f"budget_tokens belongs to the tiling rule 'budget', and only there; got {self.rule!r}")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise UserError(f"a tiling budget must be at least 1 visual token, got {self.budget_tokens}")

    @classmethod
    def parse(cls, text: str) -> Tiling:
        """Parse "paper", "per-image", "budget:N", or a mode of DeepSeek-OCR. Raise UserError for any other text."""
        if text in ("paper", "per-image", *PAGE_MODES):
            return cls(rule=cast(TilingRule, text))
        name, colon, number = text.partition(":")
        if name == "budget" and colon and number.isascii() and number.isdigit():
            return cls(rule="budget", budget_tokens=int(number))
        raise UserError(
            f"tiling must be paper, per-image or budget:N (N visual tokens), got {text!r}; of DeepSeek-OCR paper or "
            f"one of {', '.join(PAGE_MODES)}"
        )

    def __str__(self) -> str:
        return self.rule if self.budget_tokens is None else f"{self.rule}:{self.budget_tokens}"

    def choose_grids(
        self, sizes: Sequence[Sequence[Size]], canvases: Sequence[Size], *, tile_px: int, side: int
    ) -> list[Grid]:
        """Return one grid per image, in order, given the sizes of each message's images.

        `side` is the number of visual tokens along one side of a tile. Raise UserError if the budget is too small even
        for untiled images.
        """
        if self.budget_tokens is not None:
            return _spend_budget(self.budget_tokens, sizes, canvases, tile_px, side)
        flat = [size for message in sizes for size in message]
        if self.rule == "paper" and len(flat) > MAX_TILED_IMAGES:
            return [UNTILED] * len(flat)
        return [_grid_of(choose_canvas(size, canvases), tile_px) for size in flat]


def _grid_of(canvas: Size, tile_px: int) -> Grid:
    return canvas[0] // tile_px, canvas[1] // tile_px


def _spend_budget(
    budget: int, sizes: Sequence[Sequence[Size]], canvases: Sequence[Size], tile_px: int, side: int
) -> list[Grid]:
    cost = {canvas: num_visual_tokens(_grid_of(canvas, tile_px), side) for canvas in canvases}
    untiled_cost = num_visual_tokens(UNTILED, side)
    grids: list[Grid] = []
    left = budget
    for index, message in enumerate(sizes):
        needed = untiled_cost * len(message)
        if needed > left:
            raise UserError(
                f"tiling budget of {budget} visual tokens is too small: the images of message {index} need at least "
                f"{needed} ({len(message)} x {untiled_cost}, untiled), and {left} are left"
            )
        for position, size in enumerate(message):
            spendable = left - untiled_cost * (len(message) - position - 1)
            affordable = [canvas for canvas in canvases if cost[canvas] <= spendable]
            grid = _grid_of(choose_canvas(size, affordable), tile_px) if affordable else UNTILED
            grids.append(grid)
            left -= num_visual_tokens(grid, side)
    return grids
