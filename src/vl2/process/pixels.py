"""One picture to the tiles that the vision encoder reads: resize, pad, cut, normalize.

Sizes are (width, height) until `pixel_values`, which makes [I, 3, P, P] with P the tile side. Up to there no PyTorch
is needed, so a process that only decodes and cuts pictures does not import it.

Source: the released processor; arXiv 2412.10302, dynamic tiling. Golden:
tests/golden/reference/processor/images.json, tiles/, pixel_values.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def cut_tiles(canvas: Image.Image, tile_px: int) -> list[Image.Image]:
    """Cut a canvas into tiles, row by row."""
    width, height = canvas.size
    return [
        canvas.crop((x, y, x + tile_px, y + tile_px))
        for y in range(0, height, tile_px)
        for x in range(0, width, tile_px)
    ]


def make_tiles(image: Image.Image, grid: Grid, tile_px: int, color: Color) -> list[Image.Image]:
    """Return the global view, then the local tiles row by row.

    A 1 x 1 grid's local tile would equal the global view, so that view stands alone.
    """
    tiles = [pad_to_canvas(image, (tile_px, tile_px), color)]
    if grid != UNTILED:
        canvas = pad_to_canvas(image, (grid[0] * tile_px, grid[1] * tile_px), color)
        tiles += cut_tiles(canvas, tile_px)
    return tiles


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
