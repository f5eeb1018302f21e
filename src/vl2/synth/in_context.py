"""Two images: an object is marked in the first, and the objects of its kind are to be found in the second."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import ImageDraw

from vl2.synth.draft import Draft
from vl2.synth.scene import Composed, Placed, Scene, compose
from vl2.synth.source import Dropped, Source
from vl2.synth.sprites import Kind, things
from vl2.synth.visual_prompt import COLOURS, free_colours

SHAPES_ZH = {"rectangle": "矩形", "ellipse": "椭圆"}
ASK = {
    # The first of each is the wording of the released prompt or of the report.
    "en": (
        "<|grounding|>In the first image, an object within the {colour} {shape} is marked. Locate the object of the "
        "same category in the second image.",
        "<|grounding|>The first image shows an object within the {colour} {shape}. Please identify the object of the "
        "same category in the second image.",
        "<|grounding|>Find what the {colour} {shape} marks in the first image. Where is it in the second image?",
    ),
    "zh": (
        "<|grounding|>第一张图中，{colour}{shape}标出了一个物体。请在第二张图中定位同类的物体。",
        "<|grounding|>在第二张图里找出与第一张图中{colour}{shape}内物体同类的物体。",
    ),
}


@dataclass(frozen=True, kw_only=True)
class InContext(Source):
    """In-context grounding; the answer carries the kind's name and its boxes in the second image."""

    name = "in_context"
    category = "in_context_grounding"
    tasks_known: ClassVar[tuple[str, ...]] = ("rectangle", "ellipse")

    scene: Scene = field(default_factory=Scene)

    def own_licence(self) -> str:
        return self.scene.own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language, shape = rng.choice(self.scene.languages), self.pick_task(rng)
        kind, first, second = self._two_scenes(rng)
        colour = rng.choice(free_colours([p.kind.full_name("en") for p in first.placed]))
        marked = rng.choice([p for p in first.placed if p.kind == kind])
        _mark(first, marked, shape, colour)
        draft = Draft(language=language, traits={"mark": shape, "colour": colour})
        draft.picture(first.image)
        draft.picture(second.image)
        place = draft.box(kind.name(language), second.boxes(language, kind.name(language)), image=1)
        zh = language == "zh"
        names = {"colour": COLOURS[colour][0] if zh else colour, "shape": SHAPES_ZH[shape] if zh else shape}
        draft.ask(rng.choice(ASK[language]).format(**names), place)
        return draft

    def _two_scenes(self, rng: random.Random) -> tuple[Kind, Composed, Composed]:
        """Return a kind and two scenes that show it, with other things around."""
        pool = things(self.scene.kinds())
        kind, *others = rng.sample(pool, min(len(pool), 6))
        others = [other for other in others if other.en != kind.en]
        # In another colour where there are colours: the category is meant, not the look.
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


def _mark(composed: Composed, marked: Placed, shape: str, colour: str) -> None:
    draw, ink = ImageDraw.Draw(composed.image), COLOURS[colour][1]
    width = max(2, round(min(composed.image.size) / 90))
    x0, y0, x1, y1 = marked.box
    if shape == "rectangle":
        draw.rectangle((x0 - width - 1, y0 - width - 1, x1 + width, y1 + width), outline=ink, width=width)
    else:
        dx, dy = (x1 - x0) * 0.21 + width, (y1 - y0) * 0.21 + width
        draw.ellipse((x0 - dx, y0 - dy, x1 + dx, y1 + dy), outline=ink, width=width)
