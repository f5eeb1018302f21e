"""Convert a picture to the views that the vision encoder reads: resize, pad, cut, normalize.

Sizes are (width, height). `pixel_values` and `normalize_pixels` return tensors [I, 3, P, P], P being the side of a
tile. PyTorch is imported only there, so a process that only decodes and cuts pictures does not load it.

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
    """Return (resized, offset): the size of an image scaled into a canvas without distortion, and where it is pasted.

    A very thin image can get a resized side of 0. Nothing of it is then visible.
    """
    width, height = size
    image_ratio, canvas_ratio = width / height, canvas[0] / canvas[1]
    resized = canvas
    # Use Python's round (half to even) and this order of float operations, as ImageOps.pad does.
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
    """The area onto which an image is drawn before it is cut into views."""

    size: Size
    view_px: int  # side of a view
    fit: Literal["pad", "stretch"]  # "pad" keeps the aspect ratio and pads the rest; "stretch" fills the canvas


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """The canvases of one image: one for an overview that is encoded separately, and those of its tiles, in order."""

    overviews: tuple[Canvas, ...] = ()
    tiles: tuple[Canvas, ...] = ()

    @property
    def num_pixels(self) -> int:
        return sum(width * height for width, height in (canvas.size for canvas in (*self.overviews, *self.tiles)))


@dataclass(frozen=True, kw_only=True)
class CutImage:
    """The views of one image as uint8 [views, P, P, 3]. Overviews and tiles may differ in P."""

    overviews: np.ndarray
    tiles: np.ndarray


def tile_canvases(grid: Grid, tile_px: int) -> tuple[Canvas, ...]:
    """Return DeepSeek-VL2's canvases: that of the overview, then that of all local tiles.

    For a 1 x 1 grid there is only the overview, because the local tile would be equal to it.
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
    """Cut an RGB image into the views of a plan."""

    def stack(canvases: Sequence[Canvas]) -> np.ndarray:
        # np.array copies, unlike np.asarray: torch needs memory that it may write to.
        views = [np.array(view) for view in draw_views(image, canvases, color)]
        return np.stack(views) if views else np.zeros((0, 1, 1, 3), np.uint8)

    return CutImage(overviews=stack(plan.overviews), tiles=stack(plan.tiles))


def plan_from_json(values: Mapping[str, Any]) -> CutPlan:
    """Return the plan that was converted with `dataclasses.asdict` and then to JSON."""

    def canvases(name: str) -> tuple[Canvas, ...]:
        return tuple(Canvas(**{**value, "size": tuple(value["size"])}) for value in values[name])

    return CutPlan(overviews=canvases("overviews"), tiles=canvases("tiles"))


def views_from_bytes(pixels: memoryview, plan: CutPlan) -> CutImage:
    """Return the views of a plan from their concatenated bytes, overviews first."""
    stacks, place = [], 0
    for canvases in (plan.overviews, plan.tiles):
        px = canvases[0].view_px if canvases else 1
        stop = place + 3 * sum(width * height for width, height in (canvas.size for canvas in canvases))
        stacks.append(np.frombuffer(pixels[place:stop], np.uint8).reshape(-1, px, px, 3))
        place = stop
    return CutImage(overviews=stacks[0], tiles=stacks[1])


def pixel_values(tiles: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float], tile_px: int) -> Tensor:
    """Return float32 [I, 3, P, P] = (u8 / 255 - mean) / std, in that order of float32 operations."""
    # np.array copies, unlike np.asarray: torch needs memory that it may write to.
    pixels = [np.array(tile) for tile in tiles]
    return normalize_pixels(np.stack(pixels) if pixels else np.zeros((0, tile_px, tile_px, 3), np.uint8), mean, std)


def normalize_pixels(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the same as `pixel_values` from the tiles' bytes, uint8 [I, P, P, 3], which must be writable."""
    import torch

    values = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    values = values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    shift, scale = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))
    return values.sub_(shift).div_(scale)
