"""Marks drawn over an image (arrow, box, circle, scribble), and questions about what they mark.

`mark` works on any record that has objects and carries its images; the source of this file draws scenes to mark.
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
from vl2.synth.scene import Scene
from vl2.synth.source import Dropped, Source

MARKS = ("arrow", "box", "circle", "scribble")
COLOURS = {
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
        "arrow": ("What does the {colour} arrow point at?", "What is at the tip of the {colour} arrow?"),
        "box": ("What is inside the {colour} box?", "Name the object in the {colour} box."),
        "circle": ("What is inside the {colour} circle?", "What does the {colour} circle mark?"),
        "scribble": ("What is marked by the {colour} scribble?", "Which object is scribbled on in {colour}?"),
    },
    "zh": {
        "arrow": ("{colour}箭头指的是什么？",),
        "box": ("{colour}方框里是什么？", "请说出{colour}方框中的物体。"),
        "circle": ("{colour}圆圈里是什么？", "{colour}圆圈标出的是什么？"),
        "scribble": ("{colour}涂鸦标出的是什么？",),
    },
}
ASK_COLOUR = {
    "en": ("What colour is the {mark} that marks the {name}?",),
    "zh": ("标出{name}的{mark}是什么颜色？",),
}
ASK_COUNT = {"en": "How many objects are marked?", "zh": "标出了几个物体？"}
MIN_SIDE_PX = 10  # a smaller object is hidden by its mark


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was drawn over which object."""

    shape: str
    colour: str
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
    """Mark one to three objects of a record's first image and ask about them. Dropped when none is large enough."""
    boxes = [(o.label, box) for o in record.objects if o.image == 0 for box in o.boxes_px]
    large = [(label, box) for label, box in boxes if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE_PX]
    if not large or not free_colours([label for label, _ in boxes]) or record.images[0].data is None:
        raise Dropped("nothing to mark")
    image = Image.open(io.BytesIO(record.images[0].data)).convert("RGB")
    chosen = rng.sample(large, min(len(large), rng.choice((1, 1, 1, 2, 3))))
    colours = free_colours([label for label, _ in boxes])
    chosen, colours = chosen[: len(colours)], rng.sample(colours, min(len(chosen), len(colours)))
    marks = [
        Mark(shape=shape, colour=colour, label=label, box=box)
        for colour, (label, box) in zip(colours, chosen, strict=True)
    ]
    for each in marks:
        draw_mark(image, each, rng)
    draft = Draft(language=record.language, traits={"mark": shape, "marks": str(len(marks))})
    draft.picture(image)
    _ask(draft, marks, rng)
    return draft


def free_colours(labels: list[str]) -> list[str]:
    """Return the colours of marks that no label names: "the red circle" must not be a thing of the picture too."""
    return [name for name in sorted(COLOURS) if not any(name in text or COLOURS[name][0] in text for text in labels)]


def _ask(draft: Draft, marks: list[Mark], rng: random.Random) -> None:
    zh = draft.language == "zh"
    asked = rng.choice(marks)
    colour = COLOURS[asked.colour][0] if zh else asked.colour
    question = rng.choice(ASK["zh" if zh else "en"][asked.shape]).format(colour=colour)
    named = article(asked.label)
    # Not str.capitalize(), which would lower the capitals within: "A Christmas tree."
    draft.ask(question, f"{asked.label}。" if zh else f"{named[:1].upper()}{named[1:]}.")
    if len(marks) > 1 and rng.random() < 0.3:
        draft.ask(ASK_COUNT["zh" if zh else "en"], str(len(marks)))
    elif [m.label for m in marks].count(asked.label) == 1 and rng.random() < 0.25:
        # Asked before what is marked would be told: as a turn of its own.
        other = rng.choice([m for m in marks if [n.label for n in marks].count(m.label) == 1])
        shape = MARKS_ZH[other.shape] if zh else other.shape
        text = rng.choice(ASK_COLOUR["zh" if zh else "en"]).format(mark=shape, name=other.label)
        draft.ask(text, f"{COLOURS[other.colour][0]}。" if zh else f"{other.colour.capitalize()}.")


def draw_mark(image: Image.Image, mark: Mark, rng: random.Random) -> None:
    """Draw a mark into an image."""
    if mark.shape not in MARKS:
        raise UserError(f"a mark is one of {', '.join(MARKS)}, got {mark.shape!r}")
    draw, ink = ImageDraw.Draw(image), COLOURS[mark.colour][1]
    width = max(2, round(min(image.size) / 90))
    x0, y0, x1, y1 = mark.box
    if mark.shape == "box":
        draw.rectangle((x0 - width - 1, y0 - width - 1, x1 + width, y1 + width), outline=ink, width=width)
    elif mark.shape == "circle":
        # The ellipse through the corners is larger than the box by the square root of two.
        dx, dy = (x1 - x0) * 0.21 + width, (y1 - y0) * 0.21 + width
        draw.ellipse((x0 - dx, y0 - dy, x1 + dx, y1 + dy), outline=ink, width=width)
    elif mark.shape == "arrow":
        _draw_arrow(draw, image.size, mark.box, ink, width)
    else:
        _draw_scribble(draw, mark.box, ink, width, rng)


def _draw_arrow(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: BoxPx, ink: tuple[int, int, int], width: int
) -> None:
    """Draw an arrow that ends inside the box and comes from where the image is widest."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    angle = math.atan2(size[1] / 2 - y, size[0] / 2 - x) if (x, y) != (size[0] / 2, size[1] / 2) else 0.7
    length = 0.22 * min(size)
    # The tip lies a little inside: at the edge it could seem to point past the object.
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
