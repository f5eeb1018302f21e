"""Built-in vector shapes with names in English and Chinese, which can be drawn without any files.

A shape is drawn in a unit square, with y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

OVERSAMPLE = 4  # shapes are drawn this many times larger and then reduced, which smooths their edges
COLORS: dict[str, tuple[str, Color]] = {
    "red": ("红色", (214, 40, 40)),
    "blue": ("蓝色", (38, 84, 200)),
    "green": ("绿色", (36, 145, 62)),
    "yellow": ("黄色", (245, 205, 35)),
    "orange": ("橙色", (243, 128, 26)),
    "purple": ("紫色", (128, 52, 160)),
    "pink": ("粉色", (244, 132, 178)),
    "brown": ("棕色", (122, 76, 42)),
    "black": ("黑色", (28, 28, 28)),
    "grey": ("灰色", (132, 132, 132)),
}


@dataclass(frozen=True)
class Pen:
    """Draws on an oversampled image. Coordinates are those of the unit square; the default color is `main`."""

    draw: ImageDraw.ImageDraw
    side: int
    main: Color
    dark: Color

    def polygon(self, points: Sequence[Point], color: Color | None = None) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=color or self.main)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, color: Color | None = None) -> None:
        self.draw.ellipse([v * self.side for v in (x0, y0, x1, y1)], fill=color or self.main)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color | None = None) -> None:
        self.draw.rectangle([v * self.side for v in (x0, y0, x1, y1)], fill=color or self.main)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape with its names and its Chinese measure word."""

    en: str
    zh: str
    measure_zh: str
    paint: Callable[[Pen], None]


def _ring(count: int, radius: float, turn: float = 0.0) -> list[Point]:
    angles = (turn - math.pi / 2 + 2 * math.pi * n / count for n in range(count))
    return [(0.5 + radius * math.cos(a), 0.5 + radius * math.sin(a)) for a in angles]


def _star(pen: Pen) -> None:
    outer, inner = _ring(5, 0.5), _ring(5, 0.2, math.pi / 5)
    pen.polygon([point for pair in zip(outer, inner, strict=True) for point in pair])


def _heart(pen: Pen) -> None:
    curve = [2 * math.pi * n / 60 for n in range(60)]
    xs = [16 * math.sin(t) ** 3 for t in curve]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in curve]
    pen.polygon([(0.5 + x / 33, 0.44 - y / 33) for x, y in zip(xs, ys, strict=True)])


def _moon(pen: Pen) -> None:
    outer = [(0.5 + 0.48 * math.cos(a), 0.5 + 0.48 * math.sin(a)) for a in _angles(50, 310)]
    # The inner arc has the same end points as the outer one.
    inner = [(0.78 + 0.37 * math.cos(a), 0.5 + 0.37 * math.sin(a)) for a in _angles(270, 90)]
    pen.polygon(outer + inner)


def _angles(start: int, end: int) -> list[float]:
    return [math.radians(start + (end - start) * n / 40) for n in range(41)]


def _cross(pen: Pen) -> None:
    pen.box(0.35, 0.02, 0.65, 0.98)
    pen.box(0.02, 0.35, 0.98, 0.65)


def _arrow(pen: Pen) -> None:
    pen.polygon([(0.02, 0.38), (0.55, 0.38), (0.55, 0.15), (0.98, 0.5), (0.55, 0.85), (0.55, 0.62), (0.02, 0.62)])


def _house(pen: Pen) -> None:
    pen.box(0.12, 0.45, 0.88, 0.98)
    pen.polygon([(0.0, 0.47), (0.5, 0.04), (1.0, 0.47)], pen.dark)
    pen.box(0.42, 0.66, 0.6, 0.98, pen.dark)
    pen.box(0.2, 0.56, 0.35, 0.7, (235, 235, 215))
    pen.box(0.67, 0.56, 0.8, 0.7, (235, 235, 215))


def _tree(pen: Pen) -> None:
    pen.box(0.43, 0.6, 0.57, 1.0, (110, 70, 40))
    for top, half in ((0.0, 0.24), (0.18, 0.32), (0.36, 0.4)):
        pen.polygon([(0.5, top), (0.5 - half, top + 0.36), (0.5 + half, top + 0.36)])


def _fish(pen: Pen) -> None:
    pen.polygon([(0.7, 0.5), (1.0, 0.22), (1.0, 0.78)], pen.dark)
    pen.ellipse(0.0, 0.24, 0.82, 0.76)
    pen.ellipse(0.14, 0.38, 0.24, 0.48, (255, 255, 255))
    pen.ellipse(0.16, 0.41, 0.21, 0.46, (0, 0, 0))


def _car(pen: Pen) -> None:
    pen.polygon([(0.22, 0.48), (0.34, 0.24), (0.68, 0.24), (0.82, 0.48)], pen.dark)
    pen.polygon([(0.3, 0.47), (0.38, 0.29), (0.49, 0.29), (0.49, 0.47)], (205, 230, 245))
    pen.polygon([(0.53, 0.47), (0.53, 0.29), (0.65, 0.29), (0.73, 0.47)], (205, 230, 245))
    pen.box(0.02, 0.46, 0.98, 0.68)
    for x in (0.25, 0.75):
        pen.ellipse(x - 0.12, 0.56, x + 0.12, 0.8, (30, 30, 30))
        pen.ellipse(x - 0.05, 0.63, x + 0.05, 0.73, (190, 190, 190))


def _flower(pen: Pen) -> None:
    pen.box(0.47, 0.5, 0.53, 1.0, (50, 130, 60))
    pen.ellipse(0.52, 0.74, 0.78, 0.86, (50, 130, 60))
    for n in range(6):
        x, y = 0.5 + 0.2 * math.cos(n * math.pi / 3), 0.3 + 0.2 * math.sin(n * math.pi / 3)
        pen.ellipse(x - 0.14, y - 0.14, x + 0.14, y + 0.14)
    pen.ellipse(0.4, 0.2, 0.6, 0.4, (250, 225, 90) if pen.main != COLORS["yellow"][1] else (150, 90, 30))


def _boat(pen: Pen) -> None:
    pen.polygon([(0.02, 0.7), (0.98, 0.7), (0.8, 0.95), (0.2, 0.95)])
    pen.box(0.48, 0.05, 0.52, 0.7, (100, 70, 40))
    pen.polygon([(0.55, 0.08), (0.92, 0.62), (0.55, 0.62)], pen.dark)
    pen.polygon([(0.45, 0.18), (0.14, 0.62), (0.45, 0.62)], pen.dark)


def _cup(pen: Pen) -> None:
    pen.draw.arc([v * pen.side for v in (0.56, 0.34, 0.98, 0.74)], -90, 90, fill=pen.dark, width=pen.side // 12)
    pen.polygon([(0.1, 0.2), (0.8, 0.2), (0.7, 0.92), (0.2, 0.92)])
    pen.ellipse(0.1, 0.12, 0.8, 0.28, pen.dark)


def _umbrella(pen: Pen) -> None:
    pen.draw.pieslice([v * pen.side for v in (0.02, 0.05, 0.98, 1.0)], 180, 360, fill=pen.main)
    for x in (0.02, 0.34, 0.66):
        pen.ellipse(x, 0.45, x + 0.32, 0.6, pen.dark)
    pen.box(0.48, 0.5, 0.52, 0.95, (60, 50, 40))


_TRIANGLE = ((0.5, 0.04), (0.0, 0.94), (1.0, 0.94))
_DIAMOND = ((0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5))

SHAPES = (
    Shape(en="circle", zh="圆形", measure_zh="个", paint=lambda pen: pen.ellipse(0.02, 0.02, 0.98, 0.98)),
    Shape(en="square", zh="正方形", measure_zh="个", paint=lambda pen: pen.box(0.04, 0.04, 0.96, 0.96)),
    Shape(en="triangle", zh="三角形", measure_zh="个", paint=lambda pen: pen.polygon(_TRIANGLE)),
    Shape(en="diamond", zh="菱形", measure_zh="个", paint=lambda pen: pen.polygon(_DIAMOND)),
    Shape(en="pentagon", zh="五边形", measure_zh="个", paint=lambda pen: pen.polygon(_ring(5, 0.5))),
    Shape(en="star", zh="星星", measure_zh="颗", paint=_star),
    Shape(en="heart", zh="爱心", measure_zh="颗", paint=_heart),
    Shape(en="cross", zh="十字", measure_zh="个", paint=_cross),
    Shape(en="arrow", zh="箭头", measure_zh="个", paint=_arrow),
    Shape(en="moon", zh="月亮", measure_zh="个", paint=_moon),
    Shape(en="house", zh="房子", measure_zh="座", paint=_house),
    Shape(en="tree", zh="树", measure_zh="棵", paint=_tree),
    Shape(en="fish", zh="鱼", measure_zh="条", paint=_fish),
    Shape(en="car", zh="汽车", measure_zh="辆", paint=_car),
    Shape(en="flower", zh="花", measure_zh="朵", paint=_flower),
    Shape(en="boat", zh="帆船", measure_zh="艘", paint=_boat),
    Shape(en="cup", zh="杯子", measure_zh="个", paint=_cup),
    Shape(en="umbrella", zh="雨伞", measure_zh="把", paint=_umbrella),
)  # fmt: skip


def draw_shape(shape: Shape, color: Color, side_px: int) -> Image.Image:
    """Return an RGBA image of a shape in a transparent square of `side_px` pixels."""
    side = side_px * OVERSAMPLE
    large = Image.new("RGBA", (side, side), (*color, 0))
    dark = (color[0] * 6 // 10, color[1] * 6 // 10, color[2] * 6 // 10)
    shape.paint(Pen(ImageDraw.Draw(large), side, color, dark))
    return large.resize((side_px, side_px), Image.Resampling.BOX)
