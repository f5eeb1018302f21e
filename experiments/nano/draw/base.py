"""What the sources have in common: the folder of inputs, the languages, and letters whose places are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.distort import Distorted, distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, letter_boxes
from vl2.synth.primer_lines import choose_face
from vl2.synth.source import Source

Color = tuple[int, int, int]
DISTORTED = 0.25  # share of pictures of text


@dataclass(frozen=True, kw_only=True)
class NanoSource(Source):
    """A source that draws from the folder that `experiments.nano.inputs` makes."""

    inputs: str
    languages: tuple[str, ...] = ("en", "en", "zh")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not Path(self.inputs).is_dir():
            raise UserError(f"there are no inputs at {self.inputs}: make them with python -m experiments.nano.inputs")

    @property
    def font_folders(self) -> tuple[str, ...]:
        return (str(Path(self.inputs) / "fonts"),)

    def face(self, rng: random.Random, text: str) -> fonts.Face:
        """Return a face that can draw a text."""
        return choose_face(rng, text, self.font_folders)

    def bold(self, face: fonts.Face, text: str) -> fonts.Face:
        """Return the bold face of a family, or the face itself where there is none that can draw a text."""
        name = face.name.rpartition(" ")[0] + " Bold"
        bold = next((other for other in fonts.find_faces(self.font_folders) if other.name == name), face)
        return bold if fonts.covers(bold, text) else face

    def own_licence(self) -> str:
        return "CC-BY-SA-3.0"  # of the encyclopedia whose words are shown


class Writes(Protocol):
    """A source of pictures of text."""

    def page(self, rng: random.Random) -> Written:
        """Draw a picture alone, without questions."""


class Written:
    """A page on which every text is noted, letter by letter, under a key."""

    def __init__(self, image: Image.Image) -> None:
        self.page = Page(image)
        self.texts: dict[object, tuple[str, list[BoxPx]]] = {}
        self._move: Callable[[BoxPx], BoxPx] = lambda box: box

    def write(
        self, key: object, at: tuple[float, float], text: str, font: fonts.Font, ink: Color, anchor: str = "la"
    ) -> BoxPx:
        """Write a text and return the box of its ink."""
        box = self.page.write(at, text, font, ink, anchor)
        self.texts[key] = (text, letter_boxes(font, text, box))
        return box

    def finish(self, rng: random.Random) -> Distorted:
        """Return the picture, now and then blurred or turned a little; boxes are where things are in it from now on."""
        picture = distort(self.page.image, rng, 1 if rng.random() < DISTORTED else 0)
        self._move = picture.move
        return picture

    def picture(self, draft: Draft, rng: random.Random) -> None:
        """Finish the picture and add it to a draft."""
        picture = self.finish(rng)
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)

    def moved(self, box: BoxPx) -> BoxPx:
        """Return where a box is in the picture that was added."""
        return self._move(box)

    def show(self, draft: Draft, keys: Sequence[object]) -> list[int]:
        """Add texts as evidence and return their numbers."""
        return [draft.show(self.texts[key][0], list(map(self._move, self.texts[key][1]))) for key in keys]

    def letters(self) -> list[tuple[str, list[BoxPx]]]:
        """Return every text with the boxes of its letters."""
        return [(text, list(map(self._move, boxes))) for text, boxes in self.texts.values()]

    def show_whole(self, draft: Draft, label: str, keys: Sequence[object]) -> int:
        """Add one object with a box for each of some texts, as what is counted, and return its number."""
        return draft.show(label, list(map(self.whole, keys)))

    def whole(self, key: object) -> BoxPx:
        """Return the box of a text."""
        return self._move(_around(self.texts[key][1]))


def _around(boxes: Sequence[BoxPx]) -> BoxPx:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))
