"""One picture to the views that the vision encoder reads: resize, pad, cut, normalize.

Sizes are (width, height) until `pixel_values`, which makes [I, 3, P, P] with P the tile side. Up to there no PyTorch
is needed, so a process that only decodes and cuts pictures does not import it.

Source: the released processor; arXiv 2412.10302, dynamic tiling. Golden:
tests/golden/reference/processor/images.json, tiles/, pixel_values.safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vl2.grid import UNTILED, Grid
from vl2.process.tiling import Size

if TYPE_CHECKING:
    from torch import Tensor

Color = tuple[int, int, int]


def fit_inside(size: Size, canvas: Size) -> tuple[Size, Size]:
    """Return (resized, offset): how an image is scaled into a canvas, keeping its shape, and where it is pasted.

    A very thin image can get a resized side of 0: then nothing of it is visible.
    """
    width, height = size
    image_ratio, canvas_ratio = width / height, canvas[0] / canvas[1]
    resized = canvas
    # Python's round (half to even), in this order of float operations, as ImageOps.pad does.
    if image_ratio > canvas_ratio:
        resized = canvas[0], round(height / width * canvas[0])
    elif image_ratio < canvas_ratio:
        resized = round(width / height * canvas[1]), canvas[1]
    offset = round((canvas[0] - resized[0]) * 0.5), round((canvas[1] - resized[1]) * 0.5)
    return resized, offset


def pad_to_canvas(image: Image.Image, canvas: Size, color: Color) -> Image.Image:
    """Scale an RGB image into the canvas with bicubic resampling and fill the rest with `color`."""
    resized, offset = fit_inside(image.size, canvas)
    padded = Image.new("RGB", canvas, color)
    if min(resized) > 0:
        padded.paste(image.resize(resized, Image.Resampling.BICUBIC), offset)
    return padded


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What an image is drawn on before it is cut into views."""

    size: Size
    view_px: int  # side of a view
    fit: Literal["pad", "stretch"]  # keeping its shape, with padding around it; or to the canvas's shape


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """The canvases of one image: of its overview where that is encoded apart, and of its tiles, in order."""

    overviews: tuple[Canvas, ...] = ()
    tiles: tuple[Canvas, ...] = ()

    @property
    def num_pixels(self) -> int:
        return sum(width * height for width, height in (canvas.size for canvas in (*self.overviews, *self.tiles)))


@dataclass(frozen=True, kw_only=True)
class CutImage:
    """The views of one image as bytes [views, P, P, 3], each stack in a size of its own."""

    overviews: np.ndarray
    tiles: np.ndarray


def tile_canvases(grid: Grid, tile_px: int) -> tuple[Canvas, ...]:
    """Return DeepSeek-VL2's canvases: the overview, then all local tiles.

    A 1 x 1 grid's local tile would equal the overview, so that stands alone.
    """
    overview = Canvas(size=(tile_px, tile_px), view_px=tile_px, fit="pad")
    local = Canvas(size=(grid[0] * tile_px, grid[1] * tile_px), view_px=tile_px, fit="pad")
    return (overview,) if grid == UNTILED else (overview, local)


def cut_tiles(canvas: Image.Image, tile_px: int) -> list[Image.Image]:
    """Cut a canvas into tiles, row by row."""
    width, height = canvas.size
    return [
        canvas.crop((x, y, x + tile_px, y + tile_px))
        for y in range(0, height, tile_px)
        for x in range(0, width, tile_px)
    ]


def draw_views(image: Image.Image, canvases: Sequence[Canvas], color: Color) -> list[Image.Image]:
    """Return the views that an RGB image is cut into, canvas by canvas."""
    return [view for canvas in canvases for view in cut_tiles(draw_canvas(image, canvas, color), canvas.view_px)]


def draw_canvas(image: Image.Image, canvas: Canvas, color: Color) -> Image.Image:
    """Return an RGB image scaled onto a canvas."""
    if canvas.fit == "pad":
        return pad_to_canvas(image, canvas.size, color)
    return image.resize(canvas.size, Image.Resampling.BICUBIC)


def cut(image: Image.Image, plan: CutPlan, color: Color) -> CutImage:
    """Cut an RGB image as planned."""

    def stack(canvases: Sequence[Canvas]) -> np.ndarray:
        # np.array, not asarray: torch wants memory that it may write to.
        views = [np.array(view) for view in draw_views(image, canvases, color)]
        return np.stack(views) if views else np.zeros((0, 1, 1, 3), np.uint8)

    return CutImage(overviews=stack(plan.overviews), tiles=stack(plan.tiles))


def plan_from_json(values: Mapping[str, Any]) -> CutPlan:
    """Return a plan from what `dataclasses.asdict` made of it, and JSON of that."""

    def canvases(name: str) -> tuple[Canvas, ...]:
        return tuple(Canvas(**{**value, "size": tuple(value["size"])}) for value in values[name])

    return CutPlan(overviews=canvases("overviews"), tiles=canvases("tiles"))


def views_from_bytes(pixels: memoryview, plan: CutPlan) -> CutImage:
    """Return the views of a plan from their bytes end to end, overviews first."""
    stacks, place = [], 0
    for canvases in (plan.overviews, plan.tiles):
        px = canvases[0].view_px if canvases else 1
        stop = place + 3 * sum(width * height for width, height in (canvas.size for canvas in canvases))
        stacks.append(np.frombuffer(pixels[place:stop], np.uint8).reshape(-1, px, px, 3))
        place = stop
    return CutImage(overviews=stacks[0], tiles=stacks[1])


def pixel_values(tiles: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float], tile_px: int) -> Tensor:
    """Return float32 [I, 3, P, P] = (u8 / 255 - mean) / std, in that order of float32 operations."""
    # np.array, not asarray: torch wants memory that it may write to.
    pixels = [np.array(tile) for tile in tiles]
    return normalize_pixels(np.stack(pixels) if pixels else np.zeros((0, tile_px, tile_px, 3), np.uint8), mean, std)


def normalize_pixels(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return what `pixel_values` does, from the writable bytes of the tiles, [I, P, P, 3]."""
    import torch

    values = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    values = values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    shift, scale = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))
    return values.sub_(shift).div_(scale)
