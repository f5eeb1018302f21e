"""Papers: the backgrounds that text is printed on."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from vl2.process.tiling import Size

Colour = tuple[int, int, int]

PAPERS = ("plain", "white", "lined", "squared", "noise", "gradient", "folded", "dark")


def choose_paper(rng: random.Random) -> str:
    return rng.choice(PAPERS)


def make_paper(kind: str, size: Size, rng: random.Random) -> Image.Image:
    """Draw a paper of that kind. Light, but for "dark"."""
    base = (255, 255, 255) if kind == "white" else _dark(rng) if kind == "dark" else _light(rng)
    if kind in ("plain", "white", "dark"):
        return Image.new("RGB", size, base)
    if kind in ("lined", "squared"):
        return _ruled(size, base, rng, both=kind == "squared")
    width, height = size
    level = np.zeros((height, width), dtype=np.float32)
    if kind == "noise":
        level += np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 7), (height, width))
    elif kind == "gradient":
        across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
        level += rng.uniform(-16, 16) * across[None, :] + rng.uniform(-16, 16) * down[:, None]
    else:
        assert kind == "folded", kind
        level += _fold(width, rng)[None, :] + _fold(height, rng)[:, None]
    pixels = np.asarray(base, dtype=np.float32) + level[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ink_for(kind: str, rng: random.Random) -> Colour:
    """Return a colour that can be read on that paper."""
    if kind == "dark":
        return (rng.randint(200, 255), rng.randint(200, 255), rng.randint(160, 255))
    return rng.choice(((0, 0, 0), (25, 25, 35), (20, 30, 110), (110, 20, 20), (15, 75, 40), (60, 60, 60)))


def _light(rng: random.Random) -> Colour:
    level = rng.randint(232, 252)
    return (level, level - rng.randint(0, 6), level - rng.randint(0, 22))


def _dark(rng: random.Random) -> Colour:
    return (rng.randint(0, 55), rng.randint(0, 60), rng.randint(0, 75))


def _ruled(size: Size, base: Colour, rng: random.Random, *, both: bool) -> Image.Image:
    image = Image.new("RGB", size, base)
    draw = ImageDraw.Draw(image)
    step, line = rng.randint(18, 40), (base[0] - 28, base[1] - 20, min(255, base[2]))
    for y in range(step, size[1], step):
        draw.line((0, y, size[0], y), fill=line)
    for x in range(step, size[0] if both else 0, step):
        draw.line((x, 0, x, size[1]), fill=line)
    return image


def _fold(extent: int, rng: random.Random) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return how bright the paper is along one axis with a crease somewhere in the middle."""
    where = np.arange(extent, dtype=np.float32) - rng.uniform(0.35, 0.65) * extent
    crease = -22 * np.exp(-((where / 2.0) ** 2))
    level: np.ndarray[tuple[int], np.dtype[np.float32]] = crease + 7 * np.tanh(where / (0.08 * extent + 1))
    return level
