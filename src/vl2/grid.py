"""The layout of an image: its views, their visual tokens, and the order of these. All of it is integer arithmetic.

A grid is (columns, rows) of local tiles. A view becomes `side` x `side` tokens. An image's tokens are written in
blocks, and a separator stands between or after the blocks. Most blocks are one picture stitched from views, row by row,
with a newline after each row. DeepSeek-OCR-2 writes one view after another instead. The models differ in which views
they encode and in their blocks; an `ImageLayout` is that difference as a value.

Source: arXiv 2412.10302, section on dynamic tiling; released `DeepseekOCRProcessor.tokenize_with_images` and
`DeepseekOCR2Processor.tokenize_with_images`. Goldens: tests/golden/reference/processor/resolutions.json,
tests/golden/ocr/page_grids.json, tests/golden/ocr/page_grids_2.json.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vl2.model_kind import ModelKind

Grid = tuple[int, int]  # (columns, rows) of local tiles

UNTILED: Grid = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Views stitched into one picture. Its tokens are written row by row, with a newline after each row.

    If the block is not stitched, the tokens of one view follow those of another, without newlines.
    """

    first: int  # index of the block's first token among the tokens of all views of the image
    grid: Grid  # of views
    side: int  # tokens along one side of a view
    is_stitched: bool = True

    @property
    def num_tokens(self) -> int:
        columns, rows = self.grid
        return rows * self.side * (columns * self.side + self.is_stitched)


SEPARATOR = None  # the separator in a list of blocks


@dataclass(frozen=True, kw_only=True)
class ImageLayout(ABC):
    """Which views of an image are encoded, and how their tokens are written."""

    overview_side: int  # tokens along one side of the view of the whole image
    tile_side: int  # tokens along one side of a local tile

    @abstractmethod
    def num_overviews(self, grid: Grid) -> int:
        """Count the overviews that are encoded separately from the tiles, in a size of their own."""

    @abstractmethod
    def num_tiles(self, grid: Grid) -> int:
        """Count the tiles to encode, including an overview that is a tile."""

    @abstractmethod
    def blocks(self, grid: Grid) -> Sequence[Block | None]:
        """Return the blocks and SEPARATOR in the order of the tokens."""

    @property
    def num_overview_tokens(self) -> int:
        """Count the tokens of the view of the whole image, newlines included."""
        return self.overview_side * (self.overview_side + 1)

    def num_tokens(self, grid: Grid) -> int:
        """Count the tokens of one image, newlines and separator included."""
        return sum(1 if block is SEPARATOR else block.num_tokens for block in self.blocks(grid))


@dataclass(frozen=True, kw_only=True)
class OverviewFirst(ImageLayout):
    """DeepSeek-VL2's order: overview, separator, tiles. The overview is a tile like the others, encoded with them.

    A 1 x 1 grid's only local tile equals the overview, so it is encoded once and stands in both places.
    """

    def __post_init__(self) -> None:
        assert self.overview_side == self.tile_side, "the overview is a tile like the others"

    @classmethod
    def of_side(cls, side: int) -> OverviewFirst:
        return cls(overview_side=side, tile_side=side)

    def num_overviews(self, grid: Grid) -> int:
        return 0

    def num_tiles(self, grid: Grid) -> int:
        columns, rows = grid
        return 1 if grid == UNTILED else 1 + columns * rows

    def blocks(self, grid: Grid) -> Sequence[Block | None]:
        overview = Block(first=0, grid=UNTILED, side=self.tile_side)
        first_local = 0 if grid == UNTILED else self.tile_side**2
        return overview, SEPARATOR, Block(first=first_local, grid=grid, side=self.tile_side)


@dataclass(frozen=True, kw_only=True)
class TilesFirst(ImageLayout):
    """DeepSeek-OCR's order: tiles, overview, separator. The overview has its own size; a 1 x 1 grid has no tiles."""

    def num_overviews(self, grid: Grid) -> int:
        return 1

    def num_tiles(self, grid: Grid) -> int:
        columns, rows = grid
        return 0 if grid == UNTILED else columns * rows

    def blocks(self, grid: Grid) -> Sequence[Block | None]:
        overview = Block(first=0, grid=UNTILED, side=self.overview_side)
        if grid == UNTILED:
            return overview, SEPARATOR
        return Block(first=self.overview_side**2, grid=grid, side=self.tile_side), overview, SEPARATOR


@dataclass(frozen=True, kw_only=True)
class TilesOneByOne(TilesFirst):
    """DeepSeek-OCR-2's order: one tile after another, overview, separator, without newlines."""

    @property
    def num_overview_tokens(self) -> int:
        return self.overview_side**2

    def blocks(self, grid: Grid) -> Sequence[Block | None]:
        return [block and replace(block, is_stitched=False) for block in super().blocks(grid)]


LAYOUTS: dict[ModelKind, type[ImageLayout]] = {
    "DeepSeek-VL2": OverviewFirst,
    "DeepSeek-OCR": TilesFirst,
    "Unlimited-OCR": TilesFirst,
    "DeepSeek-OCR-2": TilesOneByOne,
}


def num_tiles(grid: Grid) -> int:
    """Count the tiles of an image of DeepSeek-VL2."""
    return OverviewFirst.of_side(1).num_tiles(grid)


def num_visual_tokens(grid: Grid, side: int) -> int:
    """Count the tokens of an image of DeepSeek-VL2, whose tiles have `side` tokens along a side (14 as released)."""
    return OverviewFirst.of_side(side).num_tokens(grid)
