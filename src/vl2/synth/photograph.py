"""Photograph a page as a person with a telephone does: lying on a desk, curled or folded, in uneven light.

The page is a flat image. It bends (each column moves down by a known distance), is seen in perspective, throws a
shadow on the desk, and is lit from one side, possibly with the shadow of a hand. Boxes of the page can be mapped to
the photograph exactly, because bend and perspective are known.
"""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vl2.process.tiling import Size
from vl2.synth.distort import Bend, Distorted, Matrix, apply, distort

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

DESKS = ("wood", "cloth", "stone", "plain")
PAPER_SHAPES = ("flat", "curled", "folded")


def take_picture(page: Image.Image, rng: random.Random, *, max_distortions: int, photographed: float) -> Distorted:
    """Return the page as a photograph, with the probability `photographed`, or with up to `max_distortions`."""
    if photographed and rng.random() < photographed:
        return photograph(page, rng)
    return distort(page, rng, rng.randint(0, max_distortions))


def photograph(page: Image.Image, rng: random.Random) -> Distorted:
    """Return a photograph of the page. Its text stays legible, at 0.9 to 1.1 of its size."""
    shape = rng.choice(PAPER_SHAPES)
    page = _crumple(page, rng) if shape != "folded" and rng.random() < 0.5 else page
    bend = _bend(shape, page.size, rng)
    page = _shade_bend(page, bend)
    sheet, shift = _bent(page, bend)
    matrix = _view(sheet.size, rng) @ np.array(((1.0, 0.0, 0.0), (0.0, 1.0, shift), (0.0, 0.0, 1.0)))
    size, matrix = _frame(matrix, page.size, bend, rng)
    flat = np.array(((1.0, 0.0, 0.0), (0.0, 1.0, -shift), (0.0, 0.0, 1.0)))
    seen = _warp(sheet, matrix @ flat, size)
    image = _lay(seen, make_desk(rng.choice(DESKS), size, rng), rng)
    image = _light(image, rng)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    return Distorted(
        image=image, matrix=matrix, bend=bend, jpeg_quality=rng.randint(45, 88), names=("photograph", shape)
    )


def _bend(shape: str, size: Size, rng: random.Random) -> Bend:
    """Return how many pixels each column of the page moves down."""
    width, height = size
    across = (np.arange(width) + 0.5) / width
    reach = min(width, height) * rng.uniform(0.008, 0.03) * rng.choice((-1, 1))
    if shape == "curled":
        bend: Bend = reach * np.sin(math.pi * (across * rng.uniform(0.7, 1.3) + rng.uniform(0, 0.5)))
        return bend
    if shape == "folded":
        return reach * 2 * np.abs(across - rng.uniform(0.35, 0.65))
    return np.zeros(width)


def _shade_bend(page: Image.Image, bend: Bend) -> Image.Image:
    """Darken the parts of the page that face away from the light, and a sharp fold. The light comes from the left."""
    slope = np.gradient(bend) if len(bend) > 1 else np.zeros_like(bend)
    crease = np.abs(np.gradient(slope)) * 2 if len(bend) > 1 else slope
    level = (1 - 1.6 * slope - crease).clip(0.75, 1.08).astype(np.float32)
    return _to_image(_pixels(page) * level[None, :, None])


def _bent(page: Image.Image, bend: Bend) -> tuple[Image.Image, float]:
    """Return the bent page as RGBA, and by how many pixels its flat top edge is below the top of the image."""
    room = math.ceil(float(np.abs(bend).max())) + 1
    width, height = page.size
    tall = np.zeros((height + 2 * room, width, 4), dtype=np.float32)
    # Transparent rows have the color of the page's nearest row, so that its edge keeps its color.
    tall[:, :, :3] = np.pad(_pixels(page), ((room, room), (0, 0), (0, 0)), mode="edge")
    tall[room : room + height, :, 3] = 255
    rows = np.arange(height + 2 * room)[:, None] - bend[None, :]
    above = np.floor(rows).astype(np.int64)
    part = (rows - above).astype(np.float32)[:, :, None]
    last, columns = height + 2 * room - 1, np.arange(width)[None, :]
    bent = tall[above.clip(0, last), columns] * (1 - part) + tall[(above + 1).clip(0, last), columns] * part
    return Image.fromarray(bent.round().clip(0, 255).astype(np.uint8), "RGBA"), float(room)


def _view(size: Size, rng: random.Random) -> Matrix:
    """Return the matrix of the camera's view: a rotation, and a perspective in which the far side is smaller."""
    width, height = size
    angle = math.radians(rng.uniform(-6, 6))
    cos, sin, scale = math.cos(angle), math.sin(angle), rng.uniform(0.9, 1.1)
    middle = np.array(((1.0, 0.0, -width / 2), (0.0, 1.0, -height / 2), (0.0, 0.0, 1.0)))
    turn = np.array(((scale * cos, -scale * sin, 0.0), (scale * sin, scale * cos, 0.0), (0.0, 0.0, 1.0)))
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.12, 0.12) / width, rng.uniform(-0.06, 0.18) / height
    view: Matrix = tilt @ turn @ middle
    return view


def _frame(matrix: Matrix, size: Size, bend: Bend, rng: random.Random) -> tuple[Size, Matrix]:
    """Return the size of the photograph and the matrix moved into it, with some desk on each side of the page."""
    width, height = size
    columns = np.linspace(0, width - 1, 9).astype(int)
    edges = [apply(matrix, (float(x), y + float(bend[x]))) for x in columns for y in (0.0, float(height))]
    xs, ys = zip(*edges, *(apply(matrix, (float(width), y)) for y in (0.0, float(height))), strict=True)
    left, right, top, bottom = (rng.uniform(0.01, 0.08) * min(size) + 3 for _ in range(4))
    framed = (math.ceil(max(xs) - min(xs) + left + right), math.ceil(max(ys) - min(ys) + top + bottom))
    return framed, np.array(((1.0, 0.0, left - min(xs)), (0.0, 1.0, top - min(ys)), (0.0, 0.0, 1.0))) @ matrix


def _warp(sheet: Image.Image, matrix: Matrix, size: Size) -> Image.Image:
    back = np.linalg.inv(matrix)
    coefficients = tuple(float(v) for v in (back / back[2, 2]).flatten()[:8])
    return sheet.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def _lay(seen: Image.Image, desk: Image.Image, rng: random.Random) -> Image.Image:
    """Put the page on the desk, with its shadow."""
    alpha = seen.getchannel("A")
    away = (rng.randint(-6, 8), rng.randint(2, 9))
    shadow = Image.new("L", seen.size, 0)
    shadow.paste(alpha, away)
    shadow = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(3, 9))).point(lambda level: int(level * 0.55))
    desk.paste((12, 12, 16), mask=shadow)
    desk.paste(seen.convert("RGB"), mask=alpha)
    return desk


def make_desk(kind: str, size: Size, rng: random.Random) -> Image.Image:
    """Draw a surface of one of the kinds in DESKS."""
    width, height = size
    noise = np.random.default_rng(rng.getrandbits(32))
    if kind == "wood":
        base = np.array(rng.choice(((120, 82, 50), (160, 120, 80), (84, 58, 42), (190, 160, 120))), dtype=np.float32)
        rings = _field(size, noise, (max(2, width // 220), max(3, height // 14))) * 16
        fibers = _field(size, noise, (max(2, width // 40), max(3, height // 2))) * 7
        level = rings + fibers
    elif kind == "cloth":
        base = _muted(rng)
        weave = np.indices((height, width)).sum(axis=0) % 4 < 2
        level = weave.astype(np.float32) * 9 + noise.normal(0, 5, (height, width)).astype(np.float32)
    elif kind == "stone":
        gray = rng.randint(50, 190)
        base = np.array((gray, gray, gray + rng.randint(-6, 8)), dtype=np.float32)
        level = _field(size, noise, (24, 24)) * 12 + noise.normal(0, 6, (height, width)).astype(np.float32)
    else:
        assert kind == "plain", kind
        base = _muted(rng)
        level = _field(size, noise, (3, 3)) * 6
    return _to_image(base[None, None, :] + level[:, :, None])


def _muted(rng: random.Random) -> Pixels:
    gray = rng.randint(45, 200)
    return np.array([gray + rng.randint(-24, 24) for _ in range(3)], dtype=np.float32)


def _light(image: Image.Image, rng: random.Random) -> Image.Image:
    """Light the scene from one side with warm or cold light, and often throw a soft shadow over a part of it."""
    width, height = image.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32)[None, :], np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    level = 1 + rng.uniform(0.05, 0.2) * (x * math.cos(angle) + y * math.sin(angle))
    level = level * (1 - rng.uniform(0.03, 0.14) * (x * x + y * y))
    if rng.random() < 0.5:
        level = level * (1 - rng.uniform(0.18, 0.42) * _shadow(image.size, rng))
    tint = np.array(rng.choice(((1.0, 1.0, 1.0), (1.03, 1.0, 0.92), (1.02, 0.99, 0.95), (0.95, 0.99, 1.04))))
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1.5, 5), (height, width, 1))
    lit = _pixels(image) * level[:, :, None] * tint.astype(np.float32) * rng.uniform(0.82, 1.0)
    return _to_image((lit + grain).astype(np.float32))


def _shadow(size: Size, rng: random.Random) -> Pixels:
    """Return the shadow of a hand or a telephone that reaches in from an edge: 0 for none, 1 for the darkest."""
    width, height = size
    shade = Image.new("L", size, 0)
    pen, at, wide = ImageDraw.Draw(shade), rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.3)
    tip = (rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.6) * height)
    pen.polygon([((at - wide) * width, height * 1.2), tip, ((at + wide) * width, height * 1.2)], fill=255)
    reach = wide * width * 0.6
    pen.ellipse((tip[0] - reach, tip[1] - reach * 0.7, tip[0] + reach, tip[1] + reach * 0.9), fill=255)
    shade = shade.filter(ImageFilter.GaussianBlur(min(size) * rng.uniform(0.03, 0.09)))
    if rng.random() < 0.5:
        shade = shade.transpose(Image.Transpose.ROTATE_180)
    level: Pixels = np.asarray(shade, dtype=np.float32) / np.float32(255)
    return level


def _crumple(page: Image.Image, rng: random.Random) -> Image.Image:
    """Shade the page as if it had been folded in quarters or crumpled and smoothed."""
    width, height = page.size
    noise = np.random.default_rng(rng.getrandbits(32))
    bumps = _field(page.size, noise, (rng.randint(3, 9), rng.randint(3, 9)))
    level = 1 + rng.uniform(1.0, 3.0) * (np.gradient(bumps, axis=1) + np.gradient(bumps, axis=0)).clip(-0.03, 0.03)
    for extent, axis in ((width, 1), (height, 0)):
        for share in rng.choice(((), (0.5,), (1 / 3, 2 / 3))):
            offset = (np.arange(extent) - (share + rng.uniform(-0.02, 0.02)) * extent).astype(np.float32)
            crease = 1 - 0.1 * np.exp(-((offset / 1.6) ** 2)) + 0.05 * np.exp(-(((offset - 3) / 2) ** 2))
            side = 1 + 0.03 * np.tanh(offset / 12) * np.exp(-np.abs(offset) / (0.3 * extent))
            level = level * np.expand_dims(crease * side, 1 - axis)
    return _to_image((_pixels(page) * level[:, :, None]).astype(np.float32))


def _field(size: Size, noise: np.random.Generator, cells: tuple[int, int]) -> Pixels:
    """Return smooth random levels of about -1 to 1, interpolated from `cells` (across, down) random values."""
    coarse = noise.uniform(-1, 1, (max(2, min(cells[1], size[1])), max(2, min(cells[0], size[0])))).astype(np.float32)
    smooth: Pixels = np.asarray(Image.fromarray(coarse, "F").resize(size, Image.Resampling.BICUBIC))
    return smooth


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
