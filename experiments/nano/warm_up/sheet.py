"""A tile of the warm-up while it is drawn, and what is told of it when it is done.

n patches along a side, m visual tokens, K things of a visual token that are told apart (`heads.py`). Boxes are
(x0, y0, x1, y1) as parts of the tile's side.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from experiments.nano.warm_up.classes import NOTHING

Ink = tuple[int, int, int]
Box = tuple[float, float, float, float]
PADDING = (127, 127, 127)  # of every released processor and of nano's
THINGS = 5  # K: letters of 13 px make four or five to a token of 28 px


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture and what its patches show."""

    pixels: NDArray[np.uint8]  # [P, P, 3]
    classes: NDArray[np.int64]  # [n, n]
    boxes: NDArray[np.float32]  # [n, n, 4], 0 where there is nothing
    things: NDArray[np.int64]  # [m, m, K], of a visual token in reading order, 0 behind the last
    first_boxes: NDArray[np.float32]  # [m, m, 4], of the first of them, 0 where there is none
    first_places: NDArray[np.float32]  # the same as parts of the picture without its padding, as answers count


class Sheet:
    """A tile while it is drawn, at any size."""

    def __init__(self, side: int, num_patches: int, patches_per_token: int, rng: random.Random) -> None:
        self.side = side
        self._tokens = -(-num_patches // patches_per_token)  # along a side; the last may reach beyond the tile
        self._token_share = patches_per_token / num_patches  # of the side
        self._marked: list[tuple[int, Box]] = []
        self._frame: Box = (0, 0, 1, 1)
        self.image, self.is_dark = _background(side, rng)
        self.classes = np.full((num_patches, num_patches), NOTHING, dtype=np.int64)
        self.boxes = np.zeros((num_patches, num_patches, 4), dtype=np.float32)
        self._centers = (np.arange(num_patches) + 0.5) / num_patches

    def pad(self, frame: tuple[int, int, int, int]) -> None:
        """Paint everything around the picture in the color that the processor pads with. One frame per sheet."""
        x0, y0, x1, y1 = frame
        for outside in ((0, 0, self.side, y0), (0, y1, self.side, self.side), (0, 0, x0, self.side),
                        (x1, 0, self.side, self.side)):  # fmt: skip
            if outside[0] < outside[2] and outside[1] < outside[3]:
                self.image.paste(PADDING, outside)
        self._frame = left, top, right, bottom = (x0 / self.side, y0 / self.side, x1 / self.side, y1 / self.side)
        is_in_x, is_in_y = ((self._centers >= a) & (self._centers < b) for a, b in ((left, right), (top, bottom)))
        is_outside = ~(is_in_y[:, None] & is_in_x[None, :])
        self.classes[is_outside], self.boxes[is_outside] = NOTHING, 0

    def mark(self, number: int, box: Box, *, is_seen: bool = True) -> None:
        """Say that a thing lies there, in reading order. A space, which is not seen, is no patch's."""
        x0, y0, x1, y1 = (value / self.side for value in box)
        self._marked.append((number, (x0, y0, x1, y1)))
        if not is_seen:
            return
        columns = np.flatnonzero((self._centers >= x0) & (self._centers < x1))
        rows = np.flatnonzero((self._centers >= y0) & (self._centers < y1))
        if len(columns) and len(rows):
            self.classes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = number
            self.boxes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = (x0, y0, x1, y1)

    def ink(self, rng: random.Random) -> Ink:
        low, high = (200, 255) if self.is_dark else (0, 60)
        if rng.random() < 0.6:
            level = rng.randint(low, high)
            return (level, level, level)
        low, high = (150, 255) if self.is_dark else (0, 140)
        return (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))

    def finish(self, side_px: int, rng: random.Random, difficulty: float) -> Tile:
        image = self.image
        if image.width != side_px:
            image = image.resize((side_px, side_px), Image.Resampling.BICUBIC)
        if rng.random() < 0.15 * difficulty:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
        pixels = np.asarray(image)
        if rng.random() < 0.3 * difficulty:
            grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 14), (side_px, side_px, 1))
            pixels = (pixels + grain).clip(0, 255).astype(np.uint8)
        things, first_boxes = self._by_token()
        left, top, right, bottom = self._frame
        corner = np.array([left, top] * 2, dtype=np.float32)
        size = np.array([right - left, bottom - top] * 2, dtype=np.float32)
        return Tile(
            pixels=pixels,
            classes=self.classes,
            boxes=self.boxes,
            things=things,
            first_boxes=first_boxes,
            first_places=np.where(things[:, :, :1] == NOTHING, np.float32(0), (first_boxes - corner) / size),
        )

    def _by_token(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return what the visual tokens hold. A thing is held where its middle lies; those beyond THINGS are not."""
        things = np.full((self._tokens, self._tokens, THINGS), NOTHING, dtype=np.int64)
        boxes = np.zeros((self._tokens, self._tokens, 4), dtype=np.float32)
        for number, box in self._marked:
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if not (0 <= x < 1 and 0 <= y < 1):
                continue
            # A middle a rounding error before the edge would be divided to the edge.
            row, column = (min(self._tokens - 1, int(at / self._token_share)) for at in (y, x))
            held = np.flatnonzero(things[row, column] == NOTHING)
            if len(held) == THINGS:
                boxes[row, column] = box
            if len(held):
                things[row, column, held[0]] = number
        return things, boxes


def _background(side: int, rng: random.Random) -> tuple[Image.Image, bool]:
    """Return a plain or shaded ground, and whether it is dark."""
    is_dark = rng.random() >= 0.75
    low, high = (0, 90) if is_dark else (190, 255)
    level = rng.randint(low, high)
    color = [rng.randint(low, high) if rng.random() < 0.5 else level for _ in range(3)]
    pixels = np.empty((side, side, 3), dtype=np.float32)
    pixels[:] = color
    if rng.random() < 0.25:
        ramp = np.linspace(0, rng.uniform(-40, 40), side, dtype=np.float32)
        pixels += ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), is_dark
