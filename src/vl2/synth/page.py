"""A page to write on: every text that is written returns the box of its ink."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from vl2.data.record import BoxPx
from vl2.synth.fonts import Font
from vl2.synth.paper import Colour

# These never begin a line of Chinese.
_NOT_FIRST = "，。、；：？！）》」』”’%"


@dataclass(frozen=True)
class Page:
    """An image that is written on. `write` changes it."""

    image: Image.Image

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def write(self, xy: tuple[float, float], text: str, font: Font, ink: Colour, anchor: str = "la") -> BoxPx:
        """Write one line and return the box of its ink, within the page."""
        x, y = round(xy[0]), round(xy[1])
        self.draw.text((x, y), text, ink, font, anchor)
        # PIL's own text box spans the advance of the letters, which is wider than their ink.
        mask, (dx, dy) = font.getmask2(text, "L", anchor=anchor)
        x0, y0, x1, y1 = mask.getbbox() or (0, 0, *mask.size)
        width, height = self.image.size
        return (max(0, x + dx + x0), max(0, y + dy + y0), min(width, x + dx + x1), min(height, y + dy + y1))


def letter_boxes(font: Font, text: str, box: BoxPx) -> list[BoxPx]:
    """Return for each character of a line its part of the line's box."""
    x0, y0, x1, y1 = box
    whole = font.getlength(text) or 1.0
    edges = [x0 + (x1 - x0) * min(1.0, font.getlength(text[:n]) / whole) for n in range(len(text) + 1)]
    return [(left, y0, right, y1) for left, right in pairwise(edges)]


def text_width(font: Font, text: str) -> int:
    return math.ceil(font.getlength(text))


def line_height(font: Font) -> int:
    """Return the distance from the highest to the lowest that the font reaches."""
    ascent, descent = font.getmetrics()
    return ascent + descent


def wrap(text: str, font: Font, width: float, language: str) -> list[str]:
    """Break a text into lines of at most that width; a longer word gets a line of its own.

    English breaks at blanks, Chinese anywhere but before a closing mark.
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
        # Latin words and numbers inside Chinese stay whole, and closing marks stay with what they close.
        stays = char in _NOT_FIRST or (char.isascii() and not char.isspace() and pieces[-1:] and _is_latin(pieces[-1]))
        if pieces and stays:
            pieces[-1] += char
        else:
            pieces.append(char)
    return pieces


def _is_latin(piece: str) -> bool:
    return piece[-1].isascii() and not piece[-1].isspace()
