"""Stamp a page: round and rectangular rubber stamps with worn ink, at an angle. Boxes are in pixels of the page."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.page import Color, text_width

INKS: tuple[Color, ...] = ((178, 24, 34), (196, 40, 40), (32, 58, 150), (24, 88, 62), (92, 40, 120))
MARKS = {
    "en": ("PAID", "RECEIVED", "APPROVED", "COPY", "URGENT", "CONFIDENTIAL", "CANCELLED", "CHECKED", "ORIGINAL"),
    "zh": ("已付款", "收讫", "同意", "副本", "作废", "已审核", "加急", "原件"),
}
SEAL_ZH = "{name}专用章"
COVERED = 0.82  # opacity of the ink, so that text below a stamp can still be read
VISIBLE = 40  # least level of the mask, of 255, that counts as the stamp's ink


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A stamp before it is pressed on a page."""

    mask: Image.Image  # mode L: where the ink is, already at its angle
    ink: Color
    text: str  # what it says, its lines joined by spaces (in Chinese by nothing)


def draw_stamp(rng: random.Random, language: str, folders: tuple[str, ...] | None = None) -> Stamp | None:
    """Return a random stamp, or None if no font covers its text."""
    is_round = rng.random() < 0.5
    if is_round:
        name = rng.choice(words.SHOPS[language])
        arc = SEAL_ZH.format(name=name) if language == "zh" else name.upper()
        middle = "★" if language == "zh" else words.date(rng, language)
        lines = [arc] if language == "zh" else [arc, middle]
    else:
        lines = [rng.choice(MARKS[language])]
        if rng.random() < 0.6:
            lines.append(words.date(rng, language))
    face = fonts.choose_face(rng, "".join(lines), folders)
    if face is None:
        return None
    mask = _round(arc, middle, face, rng) if is_round else _rectangular(lines, face, rng)
    turned = _worn(mask, rng).rotate(rng.uniform(-18, 18), Image.Resampling.BICUBIC, expand=True)
    return Stamp(mask=turned, ink=rng.choice(INKS), text=("" if language == "zh" else " ").join(lines))


def press(page: Image.Image, stamp: Stamp, rng: random.Random, area: BoxPx) -> BoxPx | None:
    """Stamp the page in place, with the whole stamp inside `area`, and return the box of its ink.

    Return None, and leave the page as it is, if the area is too small.
    """
    width, height = stamp.mask.size
    x0, y0, x1, y1 = (round(edge) for edge in area)
    if x1 - x0 < width or y1 - y0 < height:
        return None
    x, y = rng.randint(x0, x1 - width), rng.randint(y0, y1 - height)
    # The ink multiplies the color of the paper, as real ink does, so that print below it stays visible.
    below = page.crop((x, y, x + width, y + height))
    inked = ImageChops.multiply(below, Image.new("RGB", below.size, stamp.ink))
    page.paste(inked, (x, y), stamp.mask.point(lambda level: int(level * COVERED)))
    left, top, right, bottom = stamp.mask.point(lambda level: 255 * (level >= VISIBLE)).getbbox() or (0, 0, 0, 0)
    return (x + left, y + top, x + right, y + bottom)


def _rectangular(lines: list[str], face: fonts.Face, rng: random.Random) -> Image.Image:
    large = rng.randint(24, 38)
    written = [(line, fonts.load(face, large if n == 0 else max(13, large // 2))) for n, line in enumerate(lines)]
    pad, rule = rng.randint(8, 14), rng.randint(2, 4)
    steps = [sum(font.getmetrics()) for _, font in written]
    width = max(text_width(font, line) for line, font in written) + 2 * (pad + rule)
    mask = Image.new("L", (width, sum(steps) + 2 * (pad + rule)), 0)
    pen = ImageDraw.Draw(mask)
    box = (0, 0, mask.width - 1, mask.height - 1)
    if rng.random() < 0.5:
        pen.rounded_rectangle(box, radius=pad, outline=255, width=rule)
    else:
        pen.rectangle(box, outline=255, width=rule)
    y = pad + rule
    for (line, font), step in zip(written, steps, strict=True):
        pen.text((width / 2, y), line, 255, font, "ma")
        y += step
    return mask


def _round(arc: str, middle: str, face: fonts.Face, rng: random.Random) -> Image.Image:
    size_px = rng.randint(15, 19)
    font = fonts.load(face, size_px)
    # The radius at which the text fills at most three quarters of the circle.
    radius = max(52, math.ceil(text_width(font, arc) * 1.15 / (1.5 * math.pi)) + size_px)
    side = 2 * radius + 8
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    pen.ellipse((2, 2, side - 3, side - 3), outline=255, width=rng.randint(2, 4))
    baseline = radius - size_px - 4
    turn = math.degrees(text_width(font, arc) * 1.15 / baseline)
    at = -turn / 2
    for char in arc:
        advance = math.degrees(font.getlength(char) * 1.15 / baseline)
        letter = Image.new("L", mask.size, 0)
        ImageDraw.Draw(letter).text((side / 2, side / 2 - baseline), char, 255, font, "ms")
        mask = ImageChops.lighter(mask, letter.rotate(-(at + advance / 2), Image.Resampling.BICUBIC))
        at += advance
    pen = ImageDraw.Draw(mask)
    if middle == "★":
        pen.polygon(_star(side / 2, radius * 0.3), fill=255)
    else:
        pen.text((side / 2, side / 2), middle, 255, fonts.load(face, max(12, size_px - 3)), "mm")
        for offset in (-size_px, size_px):
            pen.line((side * 0.2, side / 2 + offset, side * 0.8, side / 2 + offset), fill=255)
    return mask


def _star(middle: float, radius: float) -> list[tuple[float, float]]:
    angles = [math.pi * (n / 5 - 0.5) for n in range(10)]
    reach = [radius if n % 2 == 0 else radius * 0.38 for n in range(10)]
    return [(middle + r * math.cos(a), middle + r * math.sin(a)) for a, r in zip(angles, reach, strict=True)]


def _worn(mask: Image.Image, rng: random.Random) -> Image.Image:
    """Thin the ink unevenly: in patches, and at single points of the paper's grain."""
    noise = np.random.default_rng(rng.getrandbits(32))
    patches = Image.fromarray(noise.uniform(0.55, 1.1, (6, 6)).astype(np.float32), "F")
    level = np.asarray(patches.resize(mask.size, Image.Resampling.BICUBIC))
    grain = noise.uniform(0.7, 1.0, (mask.height, mask.width))
    return Image.fromarray((np.asarray(mask) * level * grain).clip(0, 255).astype(np.uint8))
