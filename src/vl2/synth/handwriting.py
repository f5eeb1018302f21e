"""Write a line as a pen does: every letter a little higher, larger or more tilted than the one before.

`vl2 data fetch handwriting` gets handwriting fonts. Without them the letters of an italic or another font are moved
in the same way.
"""

from __future__ import annotations

import random
import re

import numpy as np
from PIL import Image, ImageDraw

from vl2.data.record import BoxPx
from vl2.synth import fonts
from vl2.synth.page import Color, Page

# Families, of packages and systems, that look written by hand.
_WRITTEN = re.compile(
    r"hand|script|caveat|kalam|indie flower|homemade|reenie|shadows into|long cang|zhi mang|liu jian|ma shan|comic|"
    r"chancery|kaiti|xingkai|bradley|segoe print|ink free|marker felt|noteworthy|gaegu",
    re.IGNORECASE,
)
VISIBLE = 24  # least level of the mask, of 255, that counts as ink


def choose_hand(rng: random.Random, text: str, folders: tuple[str, ...] | None) -> fonts.Face | None:
    """Return a handwriting face that covers the text, else an italic or any other face, or None if no font can."""
    faces = fonts.faces_for(text, folders)
    written = [face for face in faces if _WRITTEN.search(face.name)]
    slanted = [face for face in faces if re.search("italic|oblique", face.name, re.IGNORECASE)]
    usable = written or slanted or faces
    return rng.choice(usable) if usable else None


def write_by_hand(
    page: Page, xy: tuple[float, float], text: str, font: fonts.Font, ink: Color, rng: random.Random
) -> BoxPx:
    """Write a line with its upper left corner near `xy`, and return the box of its ink, clipped to the page."""
    size = font.size
    room = round(size)
    mask = Image.new("L", (round(font.getlength(text) * 1.15) + 2 * room, round(size * 1.6) + 2 * room), 0)
    x, drift = float(room), rng.uniform(-0.03, 0.03)
    for char in text:
        advance = font.getlength(char)
        letter = Image.new("L", (round(advance) + 2 * room, mask.height), 0)
        scaled = font.font_variant(size=size * rng.uniform(0.94, 1.06))
        y = room + rng.gauss(0, 0.03) * size + drift * (x - room)
        ImageDraw.Draw(letter).text((room, y), char, round(255 * rng.uniform(0.78, 1)), scaled)
        letter = letter.rotate(rng.gauss(0, 2.2), Image.Resampling.BICUBIC, center=(room + advance / 2, y + size / 2))
        area = (round(x) - room, 0, round(x) - room + letter.width, mask.height)
        mask.paste(Image.fromarray(np.maximum(np.asarray(mask.crop(area)), np.asarray(letter))), area[:2])
        x += advance * rng.uniform(0.96, 1.05)
    at = (round(xy[0]) - room, round(xy[1]) - room)
    page.image.paste(ink, at, mask)
    x0, y0, x1, y1 = mask.point(lambda level: 255 * (level >= VISIBLE)).getbbox() or (room, room, room, room)
    width, height = page.image.size
    return (max(0, at[0] + x0), max(0, at[1] + y0), min(width, at[0] + x1), min(height, at[1] + y1))
