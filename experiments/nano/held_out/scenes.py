"""Scenes of shapes drawn by matplotlib: filled, outlined, hatched, turned, close together and a little over each other.

The names of shapes and colors are those that training knows, since they are the classes; how they look is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from PIL import Image

from experiments.nano.held_out.items import picture_of

Box = tuple[float, float, float, float]
Point = tuple[float, float]

SIZES = ((213, 171), (257, 203), (311, 239), (263, 389), (451, 329), (541, 397), (613, 449))
COLORS = {
    "red": ("红色", "#c8102e"), "blue": ("蓝色", "#1f5fd0"), "green": ("绿色", "#1c8f3c"),
    "yellow": ("黄色", "#f0c800"), "orange": ("橙色", "#f57600"), "purple": ("紫色", "#7a2aa8"),
    "pink": ("粉色", "#f77fb0"), "brown": ("棕色", "#80502a"), "black": ("黑色", "#161616"),
    "grey": ("灰色", "#8a8a8a"),
}  # fmt: skip
NAMES_ZH = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形", "pentagon": "五边形", "star": "星星",
    "heart": "爱心", "cross": "十字", "arrow": "箭头", "moon": "月亮",
}  # fmt: skip
MEASURES_ZH = {"star": "颗", "heart": "颗"}
# How far a shape may be turned, in degrees: a square on its corner is a diamond.
TURNS = {
    "circle": 180, "square": 18, "triangle": 180, "diamond": 10, "pentagon": 180, "star": 180, "heart": 25, "cross": 18,
    "arrow": 180, "moon": 35,
}  # fmt: skip
PAPERS = ("#ffffff", "#fbf7ea", "#eaf1f8", "#f3e9f2", "#eef3e6")
STYLES = ("filled", "edged", "outlined", "hatched")
NEAR = 0.92  # of the sum of two radii: the least distance of two middles


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A shape as it is drawn; `x`, `y` and `radius` are in pixels from the top left."""

    shape: str
    color: str
    style: str
    x: float
    y: float
    radius: float
    turn: float  # degrees

    def name(self, language: str) -> str:
        return full_name(self.shape, self.color, language)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture, what is in it, and the box of each thing with its outline, in pixels."""

    image: Image.Image
    things: tuple[Thing, ...]
    boxes: tuple[Box, ...]


def full_name(shape: str, color: str, language: str) -> str:
    return f"{COLORS[color][0]}的{NAMES_ZH[shape]}" if language == "zh" else f"{color} {shape}"


def _ring(count: int, radii: Sequence[float]) -> list[Point]:
    turns = [math.tau * n / count for n in range(count)]
    return [(radii[n % len(radii)] * math.sin(t), radii[n % len(radii)] * math.cos(t)) for n, t in enumerate(turns)]


def _heart() -> list[Point]:
    ts = [math.tau * n / 80 for n in range(80)]
    return [
        (math.sin(t) ** 3, (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 16)
        for t in ts
    ]


def _moon() -> list[Point]:
    outer = [math.radians(55 + 250 * n / 50) for n in range(51)]
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    # The inner arc is of a circle through both tips, whose middle lies to the right of them.
    middle = tip_x + 0.25
    radius = math.hypot(tip_x - middle, tip_y)
    start = math.atan2(-tip_y, tip_x - middle) % math.tau
    inner = [start - n / 50 * 2 * (start - math.pi) for n in range(1, 50)]
    points = [(math.cos(a), math.sin(a)) for a in outer]
    return points + [(middle + radius * math.cos(a), radius * math.sin(a)) for a in inner]


def _outline(shape: str) -> list[Point]:
    """Return a polygon about the origin, within the unit circle, y upwards."""
    match shape:
        case "circle":
            return _ring(90, (0.92,))
        case "square":
            return [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]
        case "triangle":
            return _ring(3, (1.0,))
        case "diamond":
            return [(0, 1), (0.62, 0), (0, -1), (-0.62, 0)]
        case "pentagon":
            return _ring(5, (0.95,))
        case "star":
            return _ring(10, (1.0, 0.42))
        case "heart":
            return _heart()
        case "moon":
            return _moon()
        case "cross":
            a, b = 0.28, 0.9
            return [
                (-a, b),
                (a, b),
                (a, a),
                (b, a),
                (b, -a),
                (a, -a),
                (a, -b),
                (-a, -b),
                (-a, -a),
                (-b, -a),
                (-b, a),
                (-a, a),
            ]
    assert shape == "arrow", shape
    return [(-0.95, 0.2), (0.2, 0.2), (0.2, 0.58), (0.98, 0), (0.2, -0.58), (0.2, -0.2), (-0.95, -0.2)]


def make_things(rng: Random, kinds: Sequence[tuple[str, str]], size: tuple[int, int]) -> tuple[Thing, ...] | None:
    """Place one thing for each (shape, color); None if there is no room."""
    width, height = size
    largest = min(min(size) / 4.2, math.sqrt(width * height / (len(kinds) + 1)) / 2.4)
    placed: list[Thing] = []
    for shape, color in kinds:
        for _ in range(200):
            radius = rng.uniform(max(11.0, 0.55 * largest), max(12.0, largest))
            x, y = rng.uniform(radius + 3, width - radius - 3), rng.uniform(radius + 3, height - radius - 3)
            if all(math.hypot(x - o.x, y - o.y) > NEAR * (radius + o.radius) for o in placed):
                break
        else:
            return None
        turn = rng.uniform(-TURNS[shape], TURNS[shape])
        style = rng.choice(STYLES)
        placed.append(Thing(shape=shape, color=color, style=style, x=x, y=y, radius=radius, turn=turn))
    return tuple(placed)


def draw_scene(rng: Random, things: tuple[Thing, ...], size: tuple[int, int]) -> Scene:
    """Draw things on paper of one color, with a grid of dots under a third of them."""
    width, height = size
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=rng.choice(PAPERS))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    if rng.random() < 1 / 3:
        xs, ys = np.meshgrid(np.arange(8, width, 16), np.arange(8, height, 16))
        axes.scatter(xs.ravel(), ys.ravel(), s=0.8, c="#b8b8b8", marker=".", zorder=0)
    boxes: list[Box] = []
    for number, thing in enumerate(things):
        # y points down here, so outlines are turned over first.
        place = Affine2D().scale(thing.radius, -thing.radius).rotate_deg(thing.turn).translate(thing.x, thing.y)
        corners = place.transform(np.array(_outline(thing.shape)))
        path = Outline(np.vstack([corners, corners[:1]]), closed=True)
        color = COLORS[thing.color][1]
        edge_px = max(2.5, thing.radius / 7)
        look = {
            "filled": {"facecolor": color, "edgecolor": color, "linewidth": 0.5},
            "edged": {"facecolor": color, "edgecolor": "#202020", "linewidth": 0.72},
            "outlined": {"facecolor": "none", "edgecolor": color, "linewidth": edge_px * 0.72},
            "hatched": {"facecolor": color + "38", "edgecolor": color, "linewidth": edge_px * 0.5, "hatch": "//////"},
        }[thing.style]
        axes.add_patch(PathPatch(path, joinstyle="round", zorder=number + 1, **look))
        half = float(look["linewidth"]) / 0.72 / 2  # type: ignore[arg-type]
        (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        boxes.append((x0 - half, y0 - half, x1 + half, y1 + half))
    return Scene(image=picture_of(figure), things=things, boxes=tuple(boxes))


def _kind(rng: Random) -> tuple[str, str]:
    return rng.choice(tuple(NAMES_ZH)), rng.choice(tuple(COLORS))


def scene_to_locate(rng: Random) -> tuple[Scene, int]:
    """Return a scene and the number of a thing whose name only it has."""
    while True:
        kinds = [_kind(rng) for _ in range(rng.randint(2, 8))]
        alone = [n for n, kind in enumerate(kinds) if kinds.count(kind) == 1]
        size = rng.choice(SIZES)
        things = make_things(rng, kinds, size) if alone else None
        if things is not None:
            return draw_scene(rng, things, size), rng.choice(alone)


def scene_to_count(rng: Random, count: int) -> tuple[Scene, tuple[str, str]]:
    """Return a scene with `count` things of a shape and color among up to five of other shapes."""
    while True:
        shape, color = _kind(rng)
        others = [kind for kind in (_kind(rng) for _ in range(rng.randint(0, 5))) if kind[0] != shape]
        kinds = [(shape, color)] * count + others
        rng.shuffle(kinds)
        size = rng.choice(SIZES)
        things = make_things(rng, kinds, size)
        if things is not None:
            return draw_scene(rng, things, size), (shape, color)


def scene_of(rng: Random, count: int) -> Scene:
    """Return a scene of `count` things of any kind."""
    while True:
        size = rng.choice(SIZES)
        things = make_things(rng, [_kind(rng) for _ in range(count)], size)
        if things is not None:
            return draw_scene(rng, things, size)


def kind_for_presence(rng: Random, scene: Scene, is_there: bool) -> tuple[str, str]:
    """Return a kind that is in a scene, or one that is not: half the time a shape that is there in another color."""
    shown = {(thing.shape, thing.color) for thing in scene.things}
    if is_there:
        return rng.choice(sorted(shown))
    while True:
        shape, color = _kind(rng)
        if rng.random() < 0.5:
            shape = rng.choice(scene.things).shape
        if (shape, color) not in shown:
            return shape, color
