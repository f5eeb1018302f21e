"""Distort a page as a camera or scanner does: rotation, perspective, shadow, low contrast, blur, noise and JPEG.

Boxes on the page can be mapped to the distorted image. `photograph.py` makes photographs of paper.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from vl2.data.record import BoxPx

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Bend = np.ndarray[tuple[int], np.dtype[np.float64]]
Point = tuple[float, float]

EDGE_POINTS = 17  # number of points of an edge whose moved places bound a box on a bent page

DISTORTIONS = ("rotate", "perspective", "blur", "noise", "shadow", "low_contrast", "jpeg")


@dataclass(frozen=True, kw_only=True)
class Distorted:
    """A distorted page, with the mapping from page coordinates to image coordinates."""

    image: Image.Image
    matrix: Matrix  # 3 x 3, maps homogeneous page coordinates to image coordinates
    jpeg_quality: int | None  # quality at which to store the image as JPEG; None for PNG
    names: tuple[str, ...]  # names of the applied distortions
    bend: Bend | None = None  # how far each column of the page moves down before `matrix` applies; None for a flat page

    def place(self, point: Point) -> Point:
        """Return where a point of the page is in the image."""
        x, y = point
        return apply(self.matrix, (x, y + self._bent(x)))

    def move(self, box: BoxPx) -> BoxPx:
        """Return the axis-aligned box around a box of the page in the image, clipped to the image."""
        x0, y0, x1, y1 = box
        # The edges of a box on a bent page are curves; on a flat page the corners suffice.
        across = (x0, x1) if self.bend is None else tuple(np.linspace(x0, x1, EDGE_POINTS))
        xs, ys = zip(*(self.place((float(x), y)) for y in (y0, y1) for x in across), strict=True)
        width, height = self.image.size
        return (max(0.0, min(xs)), max(0.0, min(ys)), min(float(width), max(xs)), min(float(height), max(ys)))

    def _bent(self, x: float) -> float:
        if self.bend is None:
            return 0.0
        # Entry i is for the middle of pixel column i.
        return float(np.interp(x - 0.5, np.arange(len(self.bend)), self.bend))


def distort(image: Image.Image, rng: random.Random, amount: int) -> Distorted:
    """Apply `amount` random distortions, or all if there are fewer. Each is so mild that text stays legible."""
    names = tuple(name for name in DISTORTIONS if name in rng.sample(DISTORTIONS, min(amount, len(DISTORTIONS))))
    matrix = np.eye(3)
    if "rotate" in names:
        matrix = _rotation(image, rng)
    if "perspective" in names:
        matrix = _slant(image, rng) @ matrix
    if "rotate" in names or "perspective" in names:
        image, matrix = _warp(image, matrix, rng)
    if "shadow" in names:
        image = _shade(image, rng)
    if "low_contrast" in names:
        image = Image.blend(image, Image.new("RGB", image.size, _mean(image)), rng.uniform(0.2, 0.4))
    if "blur" in names:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    if "noise" in names:
        image = _grain(image, rng)
    quality = rng.randint(35, 80) if "jpeg" in names else None
    return Distorted(image=image, matrix=matrix, jpeg_quality=quality, names=names)


def apply(matrix: Matrix, point: Point) -> Point:
    x, y, scale = matrix @ np.array((point[0], point[1], 1.0))
    return float(x / scale), float(y / scale)


def _rotation(image: Image.Image, rng: random.Random) -> Matrix:
    angle = math.radians(rng.uniform(1, 5) * rng.choice((-1, 1)))
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array(((cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0)))


def _slant(image: Image.Image, rng: random.Random) -> Matrix:
    """Return the matrix of a mild perspective, in which the far side of the page is up to a seventh smaller."""
    reach = 0.07
    a, b = rng.uniform(-reach, reach) / image.width, rng.uniform(-reach, reach) / image.height
    return np.array(((1.0, rng.uniform(-0.04, 0.04), 0.0), (0.0, 1.0, 0.0), (a, b, 1.0)))


def _warp(image: Image.Image, matrix: Matrix, rng: random.Random) -> tuple[Image.Image, Matrix]:
    """Transform the image by the matrix, on a plain background that is just large enough for the whole page.

    Return the new image, and the matrix with the shift into the new image included.
    """
    width, height = image.size
    corners = [apply(matrix, p) for p in ((0, 0), (width, 0), (width, height), (0, height))]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    size = (math.ceil(max(x for x, _ in corners) - left), math.ceil(max(y for _, y in corners) - top))
    matrix = np.array(((1.0, 0.0, -left), (0.0, 1.0, -top), (0.0, 0.0, 1.0))) @ matrix
    back = np.linalg.inv(matrix)
    back = back / back[2, 2]
    desk = tuple(rng.randint(60, 200) for _ in range(3))
    coefficients = tuple(float(v) for v in back.flatten()[:8])
    moved = image.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC, fillcolor=desk)
    return moved, matrix


def _shade(image: Image.Image, rng: random.Random) -> Image.Image:
    width, height = image.size
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width)[None, :] * math.cos(angle) + np.linspace(-1, 1, height)[:, None] * math.sin(
        angle
    )
    shade = 1 - rng.uniform(0.2, 0.45) / (1 + np.exp(-(across - rng.uniform(-0.4, 0.4)) * rng.uniform(4, 14)))
    pixels = np.asarray(image, dtype=np.float64) * shade[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _grain(image: Image.Image, rng: random.Random) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(3, 11), pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def _mean(image: Image.Image) -> tuple[int, int, int]:
    red, green, blue = np.asarray(image).reshape(-1, 3).mean(axis=0)
    return int(red), int(green), int(blue)
