"""Things in a scene as different hands draw them: in many looks, turned, apart or lying on one another."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from experiments.nano.draw.forms import FORMS, LOOKS, Look, draw_form, shade
from experiments.nano.draw.frame import scale_of
from vl2.data.record import BoxPx
from vl2.process.tiling import Size
from vl2.synth.restyle import restyle
from vl2.synth.scene import Composed, Placed, make_backdrop
from vl2.synth.shapes import COLORS
from vl2.synth.sprites import Kind, crop_to_visible, draw_sprite

ATTEMPTS = 50  # places tried for a thing before it is left out
LEAST_SEEN_PX = 17  # side of a thing, as the processor scales it
MOST_COVERED = 0.3  # of the smaller of two things that lie on one another
TURNED, OVERLAPPING, RESTYLED = 0.65, 0.35, 0.4  # shares of scenes
VARIED = 0.7  # share of scenes whose flat shapes are not the built-in ones
ALIKE = 0.4  # share of scenes in which all shapes are drawn in one look
RULED = 0.15  # share of scenes on paper with pale dots or lines
# How far a thing may be turned, in degrees: a square on its corner is a diamond, a house on its roof no house.
TURNS = {"moon": 60, "heart": 40, **dict.fromkeys(("circle", "triangle", "pentagon", "star", "arrow", "fish"), 180)}
OTHER_TURN = 20


def compose(kinds: Sequence[Kind], size: Size, rng: random.Random) -> Composed:
    """Lay a thing of each of `kinds` somewhere; one that finds no room is left out."""
    backdrop = make_backdrop(size, rng)
    if rng.random() < RULED:
        _rule(backdrop, rng)
    image, placed = backdrop.copy(), list[Placed]()
    looks = (rng.choice(LOOKS),) if rng.random() < ALIKE else LOOKS
    is_varied, is_turned = rng.random() < VARIED, rng.random() < TURNED
    covered = MOST_COVERED if rng.random() < OVERLAPPING else 0.0
    largest = min(0.42, 0.95 / len(kinds) ** 0.5) * min(size)
    least = max(LEAST_SEEN_PX / scale_of(size), 0.11 * min(size))
    for kind in kinds:
        side = max(16, round(rng.uniform(least, max(least, largest)) / 4) * 4)
        sprite = draw_thing(kind, side, rng, look=rng.choice(looks), is_varied=is_varied, is_turned=is_turned)
        box = _place(sprite.size, size, [thing.box for thing in placed], covered, rng)
        if box is not None:
            image.paste(sprite, (int(box[0]), int(box[1])), sprite)
            placed.append(Placed(kind=kind, box=box))
    return Composed(image=image, backdrop=backdrop, placed=tuple(placed))


def draw_thing(
    kind: Kind, side: int, rng: random.Random, *, look: Look, is_varied: bool, is_turned: bool
) -> Image.Image:
    """Draw a thing of about that side (RGBA). Art and pictures of many parts know no look but filled and outlined."""
    if is_varied and not kind.art and kind.en in FORMS:
        sprite = crop_to_visible(draw_form(kind.en, shade(COLORS[kind.color][1], rng), side, look, rng))
    else:
        sprite = draw_sprite(kind, side)
        if kind.art and rng.random() < RESTYLED:
            sprite = restyle(sprite, rng)
        if not kind.art and look == "outlined":
            sprite = outline(sprite, COLORS[kind.color][1], max(2, round(side * rng.uniform(0.04, 0.1))))
    if is_turned:
        most = OTHER_TURN if kind.art else TURNS.get(kind.en, OTHER_TURN)
        sprite = crop_to_visible(sprite.rotate(rng.uniform(-most, most), Image.Resampling.BICUBIC, expand=True))
    return sprite


def _rule(paper: Image.Image, rng: random.Random) -> None:
    """Draw pale dots or lines, as on paper for writing."""
    draw, period, kind = ImageDraw.Draw(paper), rng.randint(9, 30), rng.choice(("dots", "lines", "squares"))
    pale = tuple(rng.randint(175, 215) for _ in range(3))
    for y in range(period // 2, paper.height, period):
        if kind != "dots":
            draw.line((0, y, paper.width, y), fill=pale)
    for x in range(period // 2, paper.width, period):
        if kind == "squares":
            draw.line((x, 0, x, paper.height), fill=pale)
        elif kind == "dots":
            draw.point([(x, y) for y in range(period // 2, paper.height, period)], fill=pale)


def outline(sprite: Image.Image, color: tuple[int, int, int], width: int) -> Image.Image:
    """Keep the edge of a shape and clear what is inside."""
    alpha = Image.new("L", (sprite.width + 2, sprite.height + 2), 0)
    alpha.paste(sprite.getchannel("A"), (1, 1))
    inside = alpha.filter(ImageFilter.MinFilter(2 * width - 1))
    drawn = Image.new("RGBA", alpha.size, (*color, 0))
    drawn.putalpha(ImageChops.subtract(alpha, inside))
    return crop_to_visible(drawn)


def _place(sprite: Size, size: Size, taken: list[BoxPx], covered: float, rng: random.Random) -> BoxPx | None:
    width, height = sprite
    if width >= size[0] or height >= size[1]:
        return None
    for _ in range(ATTEMPTS):
        x, y = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
        box: BoxPx = (x, y, x + width, y + height)
        if all(_share(box, other) <= covered for other in taken):
            return box
    return None


def _share(a: BoxPx, b: BoxPx) -> float:
    """Return the area that two boxes have in common, over the smaller of them."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
