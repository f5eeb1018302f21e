"""Cut images into views. This is one of the two interfaces behind which the models differ.

`config.json` says which model it is, and `make_cutter` returns its cutter: DeepSeek-VL2's tiles (`tiling.py`), or the
overview and crops of the DeepSeek-OCR family (`page_views.py`). A cutter describes the views as a `CutPlan` and the
order of their tokens as an `ImageLayout`. Code that uses these two values does not depend on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vl2.errors import UserError
from vl2.grid import Grid, ImageLayout, OverviewFirst
from vl2.model_kind import ModelKind
from vl2.process.page_views import PAGE_RULES, PageCutter
from vl2.process.pixels import CutPlan, tile_canvases
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.tiling import PAGE_MODES, Size, Tiling, candidate_canvases, scaled


class Cutter(Protocol):
    """The rules by which a model cuts images into views. Cutters have no state."""

    @property
    def layout(self) -> ImageLayout:
        """The number of tokens of each view, and their order."""

    @property
    def tile_px(self) -> int:
        """The side of a local tile in pixels."""

    @property
    def most_views(self) -> int:
        """The largest number of views that are encoded for one image."""

    def choose_grids(self, sizes: Sequence[Sequence[Size]]) -> list[Grid]:
        """Return one grid per image, in order, given the sizes of each message's images."""

    def plan(self, grid: Grid) -> CutPlan:
        """Return the canvases from which the views of an image with this grid are cut."""


@dataclass(frozen=True, kw_only=True)
class TileCutter:
    """DeepSeek-VL2's cutter: an overview and tiles of the same size."""

    tiling: Tiling
    canvases: tuple[Size, ...]
    tile_px: int
    side: int  # visual tokens along a tile
    image_scale: float = 1.0  # canvases are chosen as for images so many times as large

    @property
    def layout(self) -> ImageLayout:
        return OverviewFirst.of_side(self.side)

    @property
    def most_views(self) -> int:
        return max(width * height for width, height in self.canvases) // self.tile_px**2 + 1

    def choose_grids(self, sizes: Sequence[Sequence[Size]]) -> list[Grid]:
        if self.image_scale != 1:
            sizes = [[scaled(size, self.image_scale) for size in message] for message in sizes]
        return self.tiling.choose_grids(sizes, self.canvases, tile_px=self.tile_px, side=self.side)

    def plan(self, grid: Grid) -> CutPlan:
        return CutPlan(tiles=tile_canvases(grid, self.tile_px))


def make_cutter(kind: ModelKind, config: PreprocessConfig, tiling: Tiling, max_tiles: int | None) -> Cutter:
    """Return the cutter of a model. `max_tiles` replaces the model's own limit.

    Raise UserError if the model does not have the tiling rule, or has no image scale and the config has one.
    """
    if kind == "DeepSeek-VL2":
        if tiling.rule in PAGE_MODES:
            raise UserError(f"tiling {tiling.rule} is of DeepSeek-OCR: DeepSeek-VL2 has paper, per-image and budget:N")
        canvases = config.candidate_resolutions
        if max_tiles is not None:
            canvases = candidate_canvases(config.tile_px, max_tiles)
        return TileCutter(
            tiling=tiling,
            canvases=canvases,
            tile_px=config.tile_px,
            side=config.tokens_per_side,
            image_scale=config.image_scale,
        )
    if config.image_scale != 1:
        raise UserError(f"image_scale is of DeepSeek-VL2: for {kind} it must be 1, got {config.image_scale}")
    if tiling.rule == "per-image" or tiling.rule == "budget":
        modes = ", ".join(PAGE_RULES[kind].view_px)
        raise UserError(f"tiling {tiling} is of DeepSeek-VL2: {kind} has paper and the modes {modes}")
    return PageCutter(
        kind=kind,
        mode="gundam" if tiling.rule == "paper" else tiling.rule,
        max_crops=PAGE_RULES[kind].max_crops if max_tiles is None else max_tiles,
        pixels_per_token=config.patch_size * config.downsample_ratio,
    )
