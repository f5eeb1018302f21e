"""Make records from boxes: questions that ask to locate an object, present or absent, and captions with boxes.

Boxes are (x0, y0, x1, y1) in pixels. The questions use the phrases of `data/locate_phrases.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vl2.data.locate_phrases import absent, locate
from vl2.data.record import PLACEHOLDER, BoxPx, Labeled, Record, StoredImage
from vl2.datasets.conversion import Conversion
from vl2.datasets.question_answers import Turn, converse
from vl2.errors import UserError
from vl2.process.tiling import Size

GROUNDED = (
    "<|grounding|>Can you describe the content of the image?",
    "<|grounding|>Describe the image.",
    "<|grounding|>What is in this picture?",
)

MAX_TURNS = 8  # queries in one record; further queries go into further records
MAX_BOXES = 40  # boxes of one label; a box takes about 20 tokens

_TAG = re.compile(r"<\|.*?\|>")


@dataclass(frozen=True, kw_only=True)
class Query:
    """A label to locate, and its boxes; it is absent if there are none."""

    label: str
    boxes_px: tuple[BoxPx, ...] = ()


def clip_box(box: Sequence[float], size: Size) -> BoxPx:
    """Clip a box to its image. Raise UserError if it has no area, or if more than half of it lies outside."""
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
    """Raise UserError if an image's size differs from the size that its boxes are for.

    This happens with resized copies, and with images that EXIF rotates.
    """
    width, height = stated.get("width", image.width), stated.get("height", image.height)
    if (width, height) != (image.width, image.height):
        raise UserError(f"its boxes are for {width} x {height} px, but the image has {image.width} x {image.height}")


def box_of_xywh(box: Sequence[float], size: Size) -> BoxPx:
    """Convert a box (left, top, width, height) in pixels."""
    x, y, width, height = box
    return clip_box((x, y, x + width, y + height), size)


def box_of_fractions(box: Sequence[float], size: Size) -> BoxPx:
    """Convert a box (x0, y0, x1, y1) in fractions of the image's sides."""
    x0, y0, x1, y1 = box
    return clip_box((x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1]), size)


def locate_records(
    conversion: Conversion, id: object, image: StoredImage, queries: Sequence[Query]
) -> Iterator[Record]:
    """Yield records that ask for every query, in an order drawn from the id.

    The boxes of an answer are sorted by row, from the top left. Queries with more than MAX_BOXES boxes are left out.
    """
    rng = conversion.random(id, "locate")
    asked = [query for query in queries if len(query.boxes_px) <= MAX_BOXES]
    for query in asked:
        if _TAG.search(query.label):
            raise UserError(f"a query must not hold special tokens, got {query.label!r}")
    rng.shuffle(asked)
    for start in range(0, len(asked), MAX_TURNS):
        turns: list[Turn] = []
        objects: list[Labeled] = []
        for query in asked[start : start + MAX_TURNS]:
            question = locate(rng, conversion.language, query.label)
            answer = f"{{box:{len(objects)}}}" if query.boxes_px else absent(rng, conversion.language, query.label)
            boxes = tuple(sorted(query.boxes_px, key=lambda box: (box[1], box[0])))
            objects.append(Labeled(image=0, label=query.label, boxes_px=boxes))
            turns.append((question, answer))
        name = id if len(asked) <= MAX_TURNS else f"{id}-{start // MAX_TURNS}"
        yield converse(conversion, name, turns, [image], category=_category(conversion), objects=objects)


def _category(conversion: Conversion) -> str:
    """Return the category of locate questions: "gui" for screens, otherwise "grounding"."""
    return "gui" if conversion.category == "gui" else "grounding"


def absent_queries(
    conversion: Conversion, id: object, num_present: int, present: set[str], vocabulary: Sequence[str]
) -> list[Query]:
    """Draw queries for labels that are absent from the image, `conversion.negatives` for each query of a present one.

    `present` must hold every label that is or may be in the image. An image without objects counts as one query.
    """
    rng = conversion.random(id, "absent")
    lower = {label.lower() for label in present}
    drawn: list[str] = []
    for _ in range(max(1, num_present)):
        if vocabulary and rng.random() < conversion.negatives:
            # Rejection sampling is cheaper than listing the absent labels: vocabularies are long, images hold few.
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
    """Return a record of a caption whose phrases have boxes. The pieces are concatenated without separators.

    Raise UserError if no phrase has boxes, or if the text holds special tokens.
    """
    text = ""
    objects: list[Labeled] = []
    for piece in pieces:
        if isinstance(piece, Query) and 0 < len(piece.boxes_px) <= MAX_BOXES:
            text += f"{{box:{len(objects)}}}"
            objects.append(Labeled(image=0, label=piece.label, boxes_px=piece.boxes_px))
            continue
        plain = piece.label if isinstance(piece, Query) else piece
        if PLACEHOLDER.search(plain) or _TAG.search(plain):
            raise UserError(f"a caption must not hold special tokens, got {plain!r:.80}")
        text += plain
    if not objects:
        raise UserError("the caption has no phrase with a box")
    prompt = conversion.random(id, "caption").choice(prompts)
    return converse(conversion, id, [(prompt, text)], [image], category="grounded_conversation", objects=objects)
