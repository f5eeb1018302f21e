"""Flat shapes in varied proportions and shades, filled, edged, outlined, patterned or graded.

The built-in shapes have one form and one shade of each color, and a model that saw only those misses others.
A form is a polygon in the unit square, y downwards.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable
from typing import Literal

from PIL import Image, ImageDraw

from experiments.nano.draw.base import Color

Point = tuple[float, float]
Form = Callable[[random.Random], list[Point]]
Look = Literal["filled", "edged", "outlined", "patterned", "graded"]
LOOKS: tuple[Look, ...] = ("filled", "filled", "edged", "outlined", "patterned", "graded")

OVERSAMPLE = 3  # forms are drawn so many times larger and then reduced, which smooths their edges
ROUND = 72  # corners of what is round


def _ring(count: int, radius: float = 0.49) -> list[Point]:
    turns = [math.tau * n / count for n in range(count)]
    return [(0.5 + radius * math.sin(turn), 0.5 - radius * math.cos(turn)) for turn in turns]


def _circle(rng: random.Random) -> list[Point]:
    return _ring(ROUND)


def _square(rng: random.Random) -> list[Point]:
    corner = rng.choice((0.0, 0.0, rng.uniform(0.03, 0.15)))
    quarter = [math.pi / 2 * n / 6 for n in range(7)] if corner else [0.0]
    points = list[Point]()
    for turn, (x, y) in enumerate(((0.97, 0.03), (0.97, 0.97), (0.03, 0.97), (0.03, 0.03))):
        inner = (x - math.copysign(corner, x - 0.5), y - math.copysign(corner, y - 0.5))
        angles = [math.pi / 2 * (turn - 1) + angle for angle in quarter]
        points += [(inner[0] + corner * math.cos(a), inner[1] + corner * math.sin(a)) for a in angles]
    return points


def _triangle(rng: random.Random) -> list[Point]:
    tip, height = rng.choice((0.5, 0.5, rng.uniform(0.25, 0.75))), rng.uniform(0.75, 0.96)
    return [(tip, 0.98 - height), (0.98, 0.98), (0.02, 0.98)]


def _diamond(rng: random.Random) -> list[Point]:
    half = rng.uniform(0.28, 0.42)
    return [(0.5, 0.01), (0.5 + half, 0.5), (0.5, 0.99), (0.5 - half, 0.5)]


def _pentagon(rng: random.Random) -> list[Point]:
    return _ring(5)


def _star(rng: random.Random) -> list[Point]:
    tips, inner = rng.choice((5, 5, 5, 6)), rng.uniform(0.38, 0.56)
    corners = _ring(2 * tips)
    return [
        (x, y) if n % 2 == 0 else (0.5 + inner * (x - 0.5), 0.5 + inner * (y - 0.5)) for n, (x, y) in enumerate(corners)
    ]


def _heart(rng: random.Random) -> list[Point]:
    """Draw two arcs above that meet in a notch, and two bent lines from their sides down to the tip."""
    radius, notch, bend = rng.uniform(0.24, 0.27), rng.uniform(0.28, 0.34), rng.uniform(0.0, 0.12)
    width = 0.5 - radius
    end = math.pi - math.acos(min(1.0, width / radius))  # where the arc reaches the middle
    right = [(0.5 + width + radius * math.cos(a), notch - radius * math.sin(a)) for a in _between(-0.47, end)]
    side = right[0]
    lower = [(0.5 + (side[0] - 0.5) * (1 - t) * (1 + bend * t), side[1] + (0.98 - side[1]) * t) for t in _steps(12)]
    half = [*right[::-1], *lower]
    return [*half, *((1 - x, y) for x, y in half[-2::-1])]


def _moon(rng: random.Random) -> list[Point]:
    """Draw an arc of a circle, open to the right, and back along one of another circle through its two tips."""
    opening, shift = rng.uniform(0.7, 1.15), rng.uniform(0.12, 0.4)
    outer = [(0.6 + 0.49 * math.cos(a), 0.5 + 0.49 * math.sin(a)) for a in _between(opening, math.tau - opening)]
    tip = outer[0]
    middle = tip[0] + shift
    radius, angle = math.hypot(tip[0] - middle, tip[1] - 0.5), math.atan2(tip[1] - 0.5, tip[0] - middle)
    inner = [(middle + radius * math.cos(a), 0.5 + radius * math.sin(a)) for a in _between(math.tau - angle, angle)]
    return outer + inner


def _cross(rng: random.Random) -> list[Point]:
    near = 0.5 - rng.uniform(0.1, 0.2)
    far = 1 - near
    a, b = 0.02, 0.98
    return [
        (near, a), (far, a), (far, near), (b, near), (b, far), (far, far),
        (far, b), (near, b), (near, far), (a, far), (a, near), (near, near),
    ]  # fmt: skip


def _arrow(rng: random.Random) -> list[Point]:
    shaft, head, neck = rng.uniform(0.06, 0.16), rng.uniform(0.24, 0.42), rng.uniform(0.45, 0.68)
    points = [(0.02, -shaft), (neck, -shaft), (neck, -head), (0.98, 0.0), (neck, head), (neck, shaft), (0.02, shaft)]
    return [(x, 0.5 + y) for x, y in points]


def _steps(count: int) -> list[float]:
    return [n / count for n in range(1, count + 1)]


def _between(start: float, end: float) -> list[float]:
    return [start, *(start + (end - start) * t for t in _steps(30))]


FORMS: dict[str, Form] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "diamond": _diamond, "pentagon": _pentagon,
    "star": _star, "heart": _heart, "moon": _moon, "cross": _cross, "arrow": _arrow,
}  # fmt: skip


def draw_form(name: str, color: Color, side: int, look: Look, rng: random.Random) -> Image.Image:
    """Return a form in a transparent square of `side` pixels (RGBA)."""
    large = side * OVERSAMPLE
    edge = max(1.5, side * rng.uniform(0.03, 0.1)) * OVERSAMPLE
    # The line around a form lies half outside of it.
    points = [(edge / 2 + x * (large - edge), edge / 2 + y * (large - edge)) for x, y in FORMS[name](rng)]
    closed = [*points, points[0], points[1]]  # one corner further than the first, so that this is joined too
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    if look != "outlined":
        draw.polygon(points, fill=255)
    if look in ("edged", "outlined", "patterned"):
        draw.line(closed, fill=255, width=round(edge), joint="curve")
    drawn = _inside(color, large, look, rng)
    if look in ("edged", "patterned"):
        line = color if look == "patterned" else _edge_color(color, rng)
        ImageDraw.Draw(drawn).line(closed, fill=line, width=round(edge), joint="curve")
    drawn.putalpha(mask)
    return drawn.resize((side, side), Image.Resampling.BOX)


def shade(color: Color, rng: random.Random) -> Color:
    """Return another shade of a color that still has its name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    if saturation < 0.1:
        level = min(255, max(0, round(255 * value + rng.uniform(-24, 24))))
        return (level, level, level)
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    saturation, value = min(1.0, saturation * rng.uniform(0.9, 1.15)), min(1.0, value * rng.uniform(0.9, 1.1))
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return (red, green, blue)


def _edge_color(color: Color, rng: random.Random) -> Color:
    dark = rng.randint(0, 60)
    return rng.choice(((dark, dark, dark), _mixed(color, (0, 0, 0), 0.5), (250, 250, 250)))


def _mixed(color: Color, other: Color, share: float) -> Color:
    """Return a color with a share of another one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return (red, green, blue)


def _inside(color: Color, side: int, look: Look, rng: random.Random) -> Image.Image:
    """Draw what fills a form: one color, one that grows paler, or stripes or dots on pale ground."""
    if look == "graded":
        pale = Image.new("RGB", (1, 2), color)
        pale.putpixel((0, rng.randrange(2)), _mixed(color, (255, 255, 255), rng.uniform(0.3, 0.55)))
        return pale.resize((side, side), Image.Resampling.BILINEAR)
    if look != "patterned":
        return Image.new("RGB", (side, side), color)
    ground = Image.new("RGB", (side, side), _mixed(color, (255, 255, 255), rng.uniform(0.65, 1.0)))
    draw, period = ImageDraw.Draw(ground), side * rng.uniform(0.1, 0.22)
    mark = period * rng.uniform(0.3, 0.6)
    places = [n * period for n in range(-int(side / period) - 1, 2 * int(side / period) + 2)]
    if rng.random() < 0.25:
        for x in places:
            for y in places:
                draw.ellipse((x, y, x + mark, y + mark), fill=color)
        return ground
    slant, is_lying = rng.choice((-1.0, 0.0, 1.0, rng.uniform(-1, 1))), rng.random() < 0.5
    for at in places:
        start, end = (at, 0.0), (at + slant * side, float(side))
        draw.line((*start[::-1], *end[::-1]) if is_lying else (*start, *end), fill=color, width=max(2, round(mark)))
    return ground
