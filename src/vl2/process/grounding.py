"""Boxes in text: convert between pixels and the 0..999 scale, write boxes, and parse them.

A box is (x0, y0, x1, y1). Text has coordinates in 999ths of the image's width and height, users work with pixels. The
whole package converts with one pair of functions, `to_999` and `to_pixels`.

Source: prompts of the released repository; `<|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vl2.errors import UserError
from vl2.process.tiling import Size

Box999 = tuple[int, int, int, int]
BoxPx = tuple[float, float, float, float]

SCALE = 999

REF, END_REF, DET, END_DET = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"

# Repeats are bounded and not nested, so that matching takes linear time on any text.
_NUMBER = r"\s{0,9}(\d{1,4})\s{0,9}"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)
TAG = re.compile(r"<\|/?(?:ref|det)\|>")
_ANY_TAG = re.compile(rf"{TAG.pattern}|<\|/?grounding\|>")
_BOX_LIST = re.compile(rf"{re.escape(DET)}.*?(?:{re.escape(END_DET)}|$)", re.DOTALL)
_MAX_LABEL = 1000  # characters; in a longer text the end tag is missing


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box of an answer, in 999ths and in pixels of its image."""

    label: str
    xyxy_999: Box999
    xyxy_px: BoxPx
    image_index: int  # counted over the conversation, from 0

    @property
    def center_px(self) -> tuple[float, float]:
        """The center of the box in pixels, x and y: on a screen, the place to click."""
        x0, y0, x1, y1 = self.xyxy_px
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, kw_only=True)
class LabeledBoxes:
    """The label of one `<|ref|>` and the boxes of its `<|det|>`."""

    label: str
    boxes: tuple[Box999, ...]


def to_999(x: float, extent: float) -> int:
    """Return a pixel coordinate as 999ths of the image's width or height, clamped to 0..999."""
    return min(SCALE, max(0, round(x / extent * SCALE)))


def to_pixels(value: float, extent: float) -> float:
    """Return a coordinate in 999ths of the image's width or height as pixels."""
    return value / SCALE * extent


def box_to_999(box_px: Sequence[float], size: Size) -> Box999:
    """Convert a box from pixels to 999ths, for an image of this (width, height)."""
    x0, y0, x1, y1 = box_px
    width, height = size
    return to_999(x0, width), to_999(y0, height), to_999(x1, width), to_999(y1, height)


def box_to_pixels(box: Box999, size: Size) -> BoxPx:
    """Convert a box from 999ths to pixels, for an image of this (width, height)."""
    x0, y0, x1, y1 = box
    width, height = size
    return to_pixels(x0, width), to_pixels(y0, height), to_pixels(x1, width), to_pixels(y1, height)


def format_boxes(label: str, boxes_999: Sequence[Sequence[int]]) -> str:
    """Return the text of a label and its boxes in the format that the model was trained on.

    Raise UserError for an empty list, a tag in the label, or a coordinate that is not a whole number in 0..999.
    """
    if not boxes_999:
        raise UserError(f"a label needs at least one box, got none for {label!r}")
    if TAG.search(label):
        raise UserError(f"a label must not contain ref or det tags, got {label!r}")
    for box in boxes_999:
        if len(box) != 4 or not all(isinstance(v, int) and 0 <= v <= SCALE for v in box):
            raise UserError(f"a box must be four whole numbers in 0..{SCALE}, got {list(box)!r}")
    body = ", ".join(f"[{', '.join(map(str, box))}]" for box in boxes_999)
    return f"{REF}{label}{END_REF}{DET}[{body}]{END_DET}"


def parse_strict(text: str) -> list[LabeledBoxes]:
    """Parse every labeled list of boxes. Any other text may stand between them.

    Raise UserError, which names the position of the first error, for a tag out of order, a label without boxes, a
    malformed list, or a number over 999.
    """
    found: list[LabeledBoxes] = []
    tags = list(TAG.finditer(text))
    for first in range(0, len(tags), 4):
        group = tags[first : first + 4]
        for tag, expected in zip(group, (REF, END_REF, DET, END_DET), strict=False):
            if tag.group() != expected:
                raise UserError(f"expected {expected} at character {tag.start()}, found {tag.group()}")
        if len(group) < 4:
            # A lone <|ref|>...<|/ref|> is a question ("Locate <|ref|>...") but never an answer.
            raise UserError(f"{group[-1].group()} at character {group[-1].start()} is not followed by its boxes")
        ref, end_ref, det, end_det = group
        if text[end_ref.end() : det.start()].strip():
            raise UserError(f"expected {DET} at character {end_ref.end()}, found other text")
        label = text[ref.end() : end_ref.start()]
        found.append(LabeledBoxes(label=label, boxes=_parse_list(text, det.end(), end_det.start())))
    return found


def without_boxes(text: str) -> str:
    """Return an answer without boxes and tags, as a person reads it. Labels stay."""
    return _ANY_TAG.sub("", _BOX_LIST.sub("", text))


def _parse_list(text: str, start: int, end: int) -> tuple[Box999, ...]:
    def error(position: int, expected: str) -> UserError:
        return UserError(f"expected {expected} at character {position}, found {text[position : position + 12]!r}")

    def skip(position: int) -> int:
        while position < end and text[position].isspace():
            position += 1
        return position

    position = skip(start)
    if position >= end or text[position] != "[":
        raise error(position, "[")
    boxes: list[Box999] = []
    while True:
        position = skip(position + 1)
        match = _BOX.match(text, position, end)
        box = _box_of(match) if match else None
        if match is None or box is None:
            raise error(position, f"a box [x0, y0, x1, y1] of numbers in 0..{SCALE}")
        boxes.append(box)
        position = skip(match.end())
        if position < end and text[position] == ",":
            continue
        if position < end and text[position] == "]" and skip(position + 1) == end:
            return tuple(boxes)
        raise error(position, f"a comma, or ] and {END_DET}")


def parse_tolerant(text: str) -> list[LabeledBoxes]:
    """Parse all complete boxes and skip everything malformed. This function never raises.

    Boxes without a label get the label "". A text that is cut off gives the boxes before the cut.
    """
    found = []
    label = ""
    for tag, body in _tagged_parts(text):
        if tag == REF:
            # The label ends at the next tag, even if that is not <|/ref|>.
            label = body.strip() if len(body) <= _MAX_LABEL else ""
        elif tag == DET:
            boxes = tuple(box for match in _BOX.finditer(body) if (box := _box_of(match)))
            if boxes:
                found.append(LabeledBoxes(label=label, boxes=boxes))
            label = ""
    return found


def _tagged_parts(text: str) -> Iterator[tuple[str, str]]:
    """Yield every tag with the text up to the next tag."""
    previous: re.Match[str] | None = None
    for tag in TAG.finditer(text):
        if previous is not None:
            yield previous.group(), text[previous.end() : tag.start()]
        previous = tag
    if previous is not None:
        yield previous.group(), text[previous.end() :]


def _box_of(match: re.Match[str]) -> Box999 | None:
    x0, y0, x1, y1 = (int(value) for value in match.groups())
    return (x0, y0, x1, y1) if max(x0, y0, x1, y1) <= SCALE else None


def boxes_in_pixels(text: str, image_sizes: Sequence[Size], image_index: int = 0) -> list[Box]:
    """Return the boxes of an answer in 999ths and in pixels of the image with this index.

    `image_sizes` holds the (width, height) of all images of the conversation. Without images no boxes are returned.
    Otherwise raise UserError if there is no image with this index.
    """
    if not image_sizes:
        return []
    if not 0 <= image_index < len(image_sizes):
        raise UserError(f"image_index must be in 0..{len(image_sizes) - 1}, got {image_index}")
    size = image_sizes[image_index]
    return [
        Box(label=entry.label, xyxy_999=box, xyxy_px=box_to_pixels(box, size), image_index=image_index)
        for entry in parse_tolerant(text)
        for box in entry.boxes
    ]
