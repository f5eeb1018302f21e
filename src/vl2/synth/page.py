"""Draw paper backgrounds, and write text on pages. Writing returns the box of the ink; boxes are in pixels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.record import BoxPx
from vl2.process.tiling import Size
from vl2.synth.fonts import Font

Color = tuple[int, int, int]

PAPERS = ("plain", "white", "lined", "squared", "noise", "gradient", "folded", "dark")


def choose_paper(rng: random.Random) -> str:
    return rng.choice(PAPERS)


def make_paper(kind: str, size: Size, rng: random.Random) -> Image.Image:
    """Draw a paper of one of the kinds in PAPERS. All kinds except "dark" are light."""
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


def ink_for(kind: str, rng: random.Random) -> Color:
    """Return a random color that is legible on a paper of this kind."""
    if kind == "dark":
        return (rng.randint(200, 255), rng.randint(200, 255), rng.randint(160, 255))
    return rng.choice(((0, 0, 0), (25, 25, 35), (20, 30, 110), (110, 20, 20), (15, 75, 40), (60, 60, 60)))


def _light(rng: random.Random) -> Color:
    level = rng.randint(232, 252)
    return (level, level - rng.randint(0, 6), level - rng.randint(0, 22))


def _dark(rng: random.Random) -> Color:
    return (rng.randint(0, 55), rng.randint(0, 60), rng.randint(0, 75))


def _ruled(size: Size, base: Color, rng: random.Random, *, both: bool) -> Image.Image:
    image = Image.new("RGB", size, base)
    draw = ImageDraw.Draw(image)
    step, line = rng.randint(18, 40), (base[0] - 28, base[1] - 20, min(255, base[2]))
    for y in range(step, size[1], step):
        draw.line((0, y, size[0], y), fill=line)
    for x in range(step, size[0] if both else 0, step):
        draw.line((x, 0, x, size[1]), fill=line)
    return image


def _fold(extent: int, rng: random.Random) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the change of brightness along one axis of a paper that has a crease near the middle."""
    where = np.arange(extent, dtype=np.float32) - rng.uniform(0.35, 0.65) * extent
    crease = -22 * np.exp(-((where / 2.0) ** 2))
    level: np.ndarray[tuple[int], np.dtype[np.float32]] = crease + 7 * np.tanh(where / (0.08 * extent + 1))
    return level


# Characters that must not begin a line of Chinese text.
_NOT_FIRST = "，。、；：？！）》」』”’%"


@dataclass(frozen=True)
class Page:
    """An image that text is written on. `write` changes the image in place."""

    image: Image.Image

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def write(self, xy: tuple[float, float], text: str, font: Font, ink: Color, anchor: str = "la") -> BoxPx:
        """Write one line at `xy`, and return the box of its ink, clipped to the page. `anchor` is PIL's text anchor."""
        x, y = round(xy[0]), round(xy[1])
        self.draw.text((x, y), text, ink, font, anchor)
        # PIL's own text box includes the advance of the letters, which is wider than their ink.
        mask, (dx, dy) = font.getmask2(text, "L", anchor=anchor)
        x0, y0, x1, y1 = mask.getbbox() or (0, 0, *mask.size)
        width, height = self.image.size
        return (max(0, x + dx + x0), max(0, y + dy + y0), min(width, x + dx + x1), min(height, y + dy + y1))


def letter_boxes(font: Font, text: str, box: BoxPx) -> list[BoxPx]:
    """Return a box for each character of a line: the line's box, divided by the widths of the characters."""
    x0, y0, x1, y1 = box
    whole = font.getlength(text) or 1.0
    edges = [x0 + (x1 - x0) * min(1.0, font.getlength(text[:n]) / whole) for n in range(len(text) + 1)]
    return [(left, y0, right, y1) for left, right in pairwise(edges)]


def text_width(font: Font, text: str) -> int:
    return math.ceil(font.getlength(text))


def line_height(font: Font) -> int:
    """Return the height of a line of this font in pixels: ascent plus descent."""
    ascent, descent = font.getmetrics()
    return ascent + descent


def wrap(text: str, font: Font, width: float, language: str) -> list[str]:
    """Break a text into lines of at most `width` pixels. A word that is wider gets a line of its own.

    English text is broken at spaces. Chinese text is broken between any two characters, but not before a closing mark
    or inside a Latin word or number.
    """
    pieces = _pieces_zh(text) if language == "zh" else text.split(" ")
    glue = "" if language == "zh" else " "
    lines: list[str] = []
    current = ""
    for piece in pieces:
        longer = f"{current}{glue}{piece}" if current else piece
        if current and font.getlength(longer.rstrip()) > width:
            lines.append(current.rstrip())
            current = piece.lstrip()
        else:
            current = longer
    return [*lines, current.rstrip()] if current.strip() else lines


def _pieces_zh(text: str) -> list[str]:
    pieces: list[str] = []
    for char in text:
        # Latin words and numbers inside Chinese are not broken, and closing marks stay with the text before them.
        stays = char in _NOT_FIRST or (char.isascii() and not char.isspace() and pieces[-1:] and _is_latin(pieces[-1]))
        if pieces and stays:
            pieces[-1] += char
        else:
            pieces.append(char)
    return pieces


def _is_latin(piece: str) -> bool:
    return piece[-1].isascii() and not piece[-1].isspace()
