"""Draw marks on an image (arrow, box, circle, scribble), and ask about the marked objects.

`mark` works on any record that has objects and contains its images; the sources in this file draw scenes. In
`in_context` an object is marked in one image, and objects of the same kind must be located in a second image.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image, ImageDraw

from vl2.data.record import BoxPx, Record
from vl2.errors import UserError
from vl2.synth.draft import Draft
from vl2.synth.nouns import article
from vl2.synth.scene import Composed, Placed, Scene, compose
from vl2.synth.source import Dropped, Source
from vl2.synth.sprites import Kind, things

MARKS = ("arrow", "box", "circle", "scribble")
COLORS = {
    "red": ("红色", (255, 0, 0)),
    "green": ("绿色", (0, 200, 0)),
    "blue": ("蓝色", (0, 60, 255)),
    "yellow": ("黄色", (255, 220, 0)),
    "magenta": ("洋红色", (255, 0, 255)),
    "cyan": ("青色", (0, 215, 230)),
}
MARKS_ZH = {"arrow": "箭头", "box": "方框", "circle": "圆圈", "scribble": "涂鸦"}
ASK: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "arrow": ("What does the {color} arrow point at?", "What is at the tip of the {color} arrow?"),
        "box": ("What is inside the {color} box?", "Name the object in the {color} box."),
        "circle": ("What is inside the {color} circle?", "What does the {color} circle mark?"),
        "scribble": ("What is marked by the {color} scribble?", "Which object is scribbled on in {color}?"),
    },
    "zh": {
        "arrow": ("{color}箭头指的是什么？",),
        "box": ("{color}方框里是什么？", "请说出{color}方框中的物体。"),
        "circle": ("{color}圆圈里是什么？", "{color}圆圈标出的是什么？"),
        "scribble": ("{color}涂鸦标出的是什么？",),
    },
}
ASK_COLOR = {
    "en": ("What colour is the {mark} that marks the {name}?",),
    "zh": ("标出{name}的{mark}是什么颜色？",),
}
ASK_COUNT = {"en": "How many objects are marked?", "zh": "标出了几个物体？"}
MIN_SIDE_PX = 10  # smaller objects are not marked, because the mark would hide them


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mark, with the label and the box of the object that it marks."""

    shape: str
    color: str
    label: str
    box: BoxPx


@dataclass(frozen=True, kw_only=True)
class VisualPrompt(Source):
    """Scenes with marks. `base` is any source whose records have objects in their first image."""

    name = "visual_prompt"
    category = "visual_prompt"
    tasks_known: ClassVar[tuple[str, ...]] = MARKS

    base: Source = field(default_factory=lambda: Scene(tasks=("detect",)))

    def own_licence(self) -> str:
        return self.base.licence or self.base.own_licence()

    def draft(self, rng: random.Random) -> Draft:
        shape = self.pick_task(rng)
        return mark(self.base.make(rng.getrandbits(31), rng.getrandbits(31)), shape, rng)


def mark(record: Record, shape: str, rng: random.Random) -> Draft:
    """Mark one to three objects of a record's first image, and ask about them.

    Raise Dropped if no object is large enough, if no color is free, or if the record does not contain the image.
    """
    boxes = [(o.label, box) for o in record.objects if o.image == 0 for box in o.boxes_px]
    large = [(label, box) for label, box in boxes if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE_PX]
    if not large or not free_colors([label for label, _ in boxes]) or record.images[0].data is None:
        raise Dropped("nothing to mark")
    image = Image.open(io.BytesIO(record.images[0].data)).convert("RGB")
    chosen = rng.sample(large, min(len(large), rng.choice((1, 1, 1, 2, 3))))
    colors = free_colors([label for label, _ in boxes])
    chosen, colors = chosen[: len(colors)], rng.sample(colors, min(len(chosen), len(colors)))
    marks = [
        Mark(shape=shape, color=color, label=label, box=box) for color, (label, box) in zip(colors, chosen, strict=True)
    ]
    for each in marks:
        draw_mark(image, each, rng)
    draft = Draft(language=record.language, traits={"mark": shape, "marks": str(len(marks))})
    draft.picture(image)
    _ask(draft, marks, rng)
    return draft


def free_colors(labels: list[str]) -> list[str]:
    """Return the colors that no label contains, because "the red circle" must not be a thing in the image too."""
    return [name for name in sorted(COLORS) if not any(name in text or COLORS[name][0] in text for text in labels)]


def _ask(draft: Draft, marks: list[Mark], rng: random.Random) -> None:
    zh = draft.language == "zh"
    asked = rng.choice(marks)
    color = COLORS[asked.color][0] if zh else asked.color
    question = rng.choice(ASK["zh" if zh else "en"][asked.shape]).format(color=color)
    named = article(asked.label)
    # str.capitalize() would make the other capitals lower case, as in "A Christmas tree."
    draft.ask(question, f"{asked.label}。" if zh else f"{named[:1].upper()}{named[1:]}.")
    if len(marks) > 1 and rng.random() < 0.3:
        draft.ask(ASK_COUNT["zh" if zh else "en"], str(len(marks)))
    elif [m.label for m in marks].count(asked.label) == 1 and rng.random() < 0.25:
        # The color is asked about in a separate turn.
        other = rng.choice([m for m in marks if [n.label for n in marks].count(m.label) == 1])
        shape = MARKS_ZH[other.shape] if zh else other.shape
        text = rng.choice(ASK_COLOR["zh" if zh else "en"]).format(mark=shape, name=other.label)
        draft.ask(text, f"{COLORS[other.color][0]}。" if zh else f"{other.color.capitalize()}.")


def draw_mark(image: Image.Image, mark: Mark, rng: random.Random) -> None:
    """Draw a mark on an image, in place. Raise UserError for an unknown shape."""
    if mark.shape not in MARKS:
        raise UserError(f"a mark is one of {', '.join(MARKS)}, got {mark.shape!r}")
    draw, ink = ImageDraw.Draw(image), COLORS[mark.color][1]
    width = max(2, round(min(image.size) / 90))
    x0, y0, x1, y1 = mark.box
    if mark.shape == "box":
        draw.rectangle((x0 - width - 1, y0 - width - 1, x1 + width, y1 + width), outline=ink, width=width)
    elif mark.shape == "circle":
        # The ellipse through the corners of the box is larger than the box by a factor of the square root of two.
        dx, dy = (x1 - x0) * 0.21 + width, (y1 - y0) * 0.21 + width
        draw.ellipse((x0 - dx, y0 - dy, x1 + dx, y1 + dy), outline=ink, width=width)
    elif mark.shape == "arrow":
        _draw_arrow(draw, image.size, mark.box, ink, width)
    else:
        _draw_scribble(draw, mark.box, ink, width, rng)


def _draw_arrow(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: BoxPx, ink: tuple[int, int, int], width: int
) -> None:
    """Draw an arrow that ends inside the box and comes from the direction of the image's center."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    angle = math.atan2(size[1] / 2 - y, size[0] / 2 - x) if (x, y) != (size[0] / 2, size[1] / 2) else 0.7
    length = 0.22 * min(size)
    # The tip is a little inside the box, because at the edge it could seem to point past the object.
    reach = 0.25 * min(box[2] - box[0], box[3] - box[1])
    tip = (x + reach * math.cos(angle), y + reach * math.sin(angle))
    tail = (tip[0] + length * math.cos(angle), tip[1] + length * math.sin(angle))
    draw.line((*tail, *tip), fill=ink, width=width)
    for side in (-0.45, 0.45):
        end = (tip[0] + 0.32 * length * math.cos(angle + side), tip[1] + 0.32 * length * math.sin(angle + side))
        draw.line((*tip, *end), fill=ink, width=width)


def _draw_scribble(
    draw: ImageDraw.ImageDraw, box: BoxPx, ink: tuple[int, int, int], width: int, rng: random.Random
) -> None:
    x0, y0, x1, y1 = box
    turns = rng.randint(4, 7)
    points = []
    for n in range(turns * 2 + 1):
        across = 0.15 + 0.7 * n / (turns * 2) + rng.uniform(-0.05, 0.05)
        down = (0.2 if n % 2 else 0.8) + rng.uniform(-0.1, 0.1)
        points.append((x0 + across * (x1 - x0), y0 + down * (y1 - y0)))
    draw.line(points, fill=ink, width=width, joint="curve")


SHAPES_ZH = {"rectangle": "矩形", "ellipse": "椭圆"}
ASK_OTHERS = {
    # The first two English texts are the wordings of the released prompt and of the report.
    "en": (
        "<|grounding|>In the first image, an object within the {color} {shape} is marked. Locate the object of the "
        "same category in the second image.",
        "<|grounding|>The first image shows an object within the {color} {shape}. Please identify the object of the "
        "same category in the second image.",
        "<|grounding|>Find what the {color} {shape} marks in the first image. Where is it in the second image?",
    ),
    "zh": (
        "<|grounding|>第一张图中，{color}{shape}标出了一个物体。请在第二张图中定位同类的物体。",
        "<|grounding|>在第二张图里找出与第一张图中{color}{shape}内物体同类的物体。",
    ),
}


@dataclass(frozen=True, kw_only=True)
class InContext(Source):
    """In-context grounding. The answer has the name of the marked kind and its boxes in the second image."""

    name = "in_context"
    category = "in_context_grounding"
    tasks_known: ClassVar[tuple[str, ...]] = ("rectangle", "ellipse")

    scene: Scene = field(default_factory=Scene)

    def own_licence(self) -> str:
        return self.scene.own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language, shape = rng.choice(self.scene.languages), self.pick_task(rng)
        kind, first, second = self._two_scenes(rng)
        color = rng.choice(free_colors([p.kind.full_name("en") for p in first.placed]))
        marked = rng.choice([p for p in first.placed if p.kind == kind])
        _mark(first, marked, shape, color)
        draft = Draft(language=language, traits={"mark": shape, "colour": color})
        draft.picture(first.image)
        draft.picture(second.image)
        place = draft.box(kind.name(language), second.boxes(language, kind.name(language)), image=1)
        zh = language == "zh"
        names = {"color": COLORS[color][0] if zh else color, "shape": SHAPES_ZH[shape] if zh else shape}
        draft.ask(rng.choice(ASK_OTHERS[language]).format(**names), place)
        return draft

    def _two_scenes(self, rng: random.Random) -> tuple[Kind, Composed, Composed]:
        """Return a kind and two scenes that contain it among other things. Raise Dropped if one has no room for it."""
        pool = things(self.scene.kinds())
        kind, *others = rng.sample(pool, min(len(pool), 6))
        others = [other for other in others if other.en != kind.en]
        # The second scene may show it in another color, because the category counts and not the appearance.
        same = [each for each in pool if each.en == kind.en]
        shown = [rng.choice(same)] * rng.choice((1, 1, 1, 2, 3))
        scenes = []
        for wanted in ([kind], shown):
            size = (rng.randrange(224, 520, 8), rng.randrange(224, 420, 8))
            mixed = [*wanted, *(rng.choice(others) for _ in range(rng.randint(1, 4)) if others)]
            scenes.append(compose(mixed, size, rng))
        if not scenes[1].boxes("en", kind.en) or all(p.kind != kind for p in scenes[0].placed):
            raise Dropped("no room for the object")
        return kind, scenes[0], scenes[1]


def _mark(composed: Composed, marked: Placed, shape: str, color: str) -> None:
    draw, ink = ImageDraw.Draw(composed.image), COLORS[color][1]
    width = max(2, round(min(composed.image.size) / 90))
    x0, y0, x1, y1 = marked.box
    if shape == "rectangle":
        draw.rectangle((x0 - width - 1, y0 - width - 1, x1 + width, y1 + width), outline=ink, width=width)
    else:
        dx, dy = (x1 - x0) * 0.21 + width, (y1 - y0) * 0.21 + width
        draw.ellipse((x0 - dx, y0 - dy, x1 + dx, y1 + dy), outline=ink, width=width)
