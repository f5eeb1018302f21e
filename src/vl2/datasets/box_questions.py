"""Boxes as questions: locate queries with their answers, queries for what is absent, and captions with boxes.

Boxes are (x0, y0, x1, y1) in pixels. The wordings are those of `data/locate_phrases.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vl2.data.locate_phrases import absent, locate
from vl2.data.record import PLACEHOLDER, BoxPx, Labelled, Record, StoredImage
from vl2.datasets.conversion import Conversion
from vl2.datasets.question_answers import Turn, converse
from vl2.errors import UserError
from vl2.process.tiling import Size

GROUNDED = (
    "<|grounding|>Can you describe the content of the image?",
    "<|grounding|>Describe the image.",
    "<|grounding|>What is in this picture?",
)

MAX_TURNS = 8  # queries in one record; the rest go into further records
MAX_BOXES = 40  # of one label; about 20 tokens each

_TAG = re.compile(r"<\|.*?\|>")


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to locate, and where it is: nowhere when there are no boxes."""

    label: str
    boxes_px: tuple[BoxPx, ...] = ()


def clip_box(box: Sequence[float], size: Size) -> BoxPx:
    """Return the box within its image. UserError if it has no area, or if most of it lies outside."""
    x0, y0, x1, y1 = (float(v) for v in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise UserError(f"a box must be finite numbers, got {list(box)}")
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))
    if x1 <= x0 or y1 <= y0 or inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise UserError(f"box {[x0, y0, x1, y1]} has no area in an image of {size[0]} x {size[1]} px")
    if _area(inside) < _area((x0, y0, x1, y1)) / 2:
        raise UserError(f"box {[x0, y0, x1, y1]} lies outside its image of {size[0]} x {size[1]} px")
    return inside


def _area(box: BoxPx) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def check_size(stated: Mapping[str, object], image: StoredImage) -> None:
    """Refuse an image that is not of the size that its boxes are for: a resized copy, or one turned by its EXIF."""
    width, height = stated.get("width", image.width), stated.get("height", image.height)
    if (width, height) != (image.width, image.height):
        raise UserError(f"its boxes are for {width} x {height} px, but the image has {image.width} x {image.height}")


def box_of_xywh(box: Sequence[float], size: Size) -> BoxPx:
    """Convert (left, top, width, height)."""
    x, y, width, height = box
    return clip_box((x, y, x + width, y + height), size)


def box_of_fractions(box: Sequence[float], size: Size) -> BoxPx:
    """Convert (x0, y0, x1, y1) in fractions of the image's sides."""
    x0, y0, x1, y1 = box
    return clip_box((x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1]), size)


def locate_records(
    conversion: Conversion, id: object, image: StoredImage, queries: Sequence[Query]
) -> Iterator[Record]:
    """Ask for every query in an order drawn by the id; boxes are read in rows, from the top left."""
    rng = conversion.random(id, "locate")
    asked = [query for query in queries if len(query.boxes_px) <= MAX_BOXES]
    for query in asked:
        if _TAG.search(query.label):
            raise UserError(f"a query must not hold special tokens, got {query.label!r}")
    rng.shuffle(asked)
    for start in range(0, len(asked), MAX_TURNS):
        turns: list[Turn] = []
        objects: list[Labelled] = []
        for query in asked[start : start + MAX_TURNS]:
            question = locate(rng, conversion.language, query.label)
            answer = f"{{box:{len(objects)}}}" if query.boxes_px else absent(rng, conversion.language, query.label)
            boxes = tuple(sorted(query.boxes_px, key=lambda box: (box[1], box[0])))
            objects.append(Labelled(image=0, label=query.label, boxes_px=boxes))
            turns.append((question, answer))
        name = id if len(asked) <= MAX_TURNS else f"{id}-{start // MAX_TURNS}"
        yield converse(conversion, name, turns, [image], category=_kind(conversion), objects=objects)


def _kind(conversion: Conversion) -> str:
    """Return what a query teaches: elements of screens are a category of their own."""
    return "gui" if conversion.category == "gui" else "grounding"


def absent_queries(
    conversion: Conversion, id: object, num_present: int, present: set[str], vocabulary: Sequence[str]
) -> list[Query]:
    """Draw labels that are not in the image: `job.negatives` of them for each query about what is there.

    `present` must hold every label that is or may be in the image. An image with nothing in it counts as one query.
    """
    rng = conversion.random(id, "absent")
    lower = {label.lower() for label in present}
    drawn: list[str] = []
    for _ in range(max(1, num_present)):
        if vocabulary and rng.random() < conversion.negatives:
            # A few tries instead of a list of what is left: vocabularies are long, images hold few labels.
            tries = (rng.choice(vocabulary) for _ in range(20))
            label = next((t for t in tries if t.lower() not in lower), None)
            if label is not None:
                lower.add(label.lower())
                drawn.append(label)
    return [Query(label=label) for label in drawn]


def grounded_caption(
    conversion: Conversion,
    id: object,
    image: StoredImage,
    pieces: Sequence[str | Query],
    prompts: Sequence[str] = GROUNDED,
) -> Record:
    """Return a caption whose phrases carry boxes. Pieces are joined as they are."""
    text = ""
    objects: list[Labelled] = []
    for piece in pieces:
        if isinstance(piece, Query) and 0 < len(piece.boxes_px) <= MAX_BOXES:
            text += f"{{box:{len(objects)}}}"
            objects.append(Labelled(image=0, label=piece.label, boxes_px=piece.boxes_px))
            continue
        plain = piece.label if isinstance(piece, Query) else piece
        if PLACEHOLDER.search(plain) or _TAG.search(plain):
            raise UserError(f"a caption must not hold special tokens, got {plain!r:.80}")
        text += plain
    if not objects:
        raise UserError("the caption has no phrase with a box")
    prompt = conversion.random(id, "caption").choice(prompts)
    return converse(conversion, id, [(prompt, text)], [image], category="grounded_conversation", objects=objects)
