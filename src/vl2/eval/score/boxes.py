"""Score boxes (x0, y0, x1, y1): their overlap, and parsers that read boxes from an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vl2.process.grounding import box_to_pixels, parse_tolerant

# Intersection over union, and matching of several boxes with several gold boxes.
#
# Golden: tests/golden/scorers/iou_pairs.json.

Box = Sequence[float]
HIT = 0.5  # the least IoU at which a box counts as found


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union, 0..1. A box with swapped corners or without area gives 0."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def match_boxes(found: Sequence[Box], gold: Sequence[Box], threshold: float = HIT) -> int:
    """Return the number of gold boxes found by greedy one-to-one matching in order of IoU."""
    pairs = sorted(
        ((iou(a, b), i, j) for i, a in enumerate(found) for j, b in enumerate(gold)), key=lambda p: (-p[0], p[1], p[2])
    )
    used_found, used_gold = set[int](), set[int]()
    for overlap, i, j in pairs:
        if overlap < threshold:
            break
        if i not in used_found and j not in used_gold:
            used_found.add(i)
            used_gold.add(j)
    return len(used_gold)


def box_f1(found: Sequence[Box], gold: Sequence[Box], threshold: float = HIT) -> float:
    """Return the F1 score at an IoU threshold; 1 if there are neither gold nor found boxes."""
    if not found and not gold:
        return 1.0
    return 2 * match_boxes(found, gold, threshold) / (len(found) + len(gold))


# Parsers that read boxes from an answer, by the rules of the two harnesses and in this model's own form. They return
# boxes (x0, y0, x1, y1) in pixels of the image.
#
# | parser | what it reads |
# |---|---|
# | our_boxes | `<|det|>[[x0, y0, x1, y1], ...]<|/det|>` on the scale 0..999, all boxes |
# | vlmevalkit_box | the first box of any form; 0..1, 0..1000 or pixels, by its largest number |
# | lmms_eval_box | the best of all boxes, each read as pixels and as 0..1000 |
# | lmms_eval_rec_box | the first four numbers in brackets as fractions of the sides (the older task); not our form |
#
# Golden: tests/golden/scorers/grounding_iou.json.

Size = tuple[int, int]

_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_BETWEEN = r"(?:\s*,\s*|\s+)"
_IN_BRACKETS = re.compile(rf"\[\s*({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER})\s*\]")
_PLAIN = r"(-?\d+(?:\.\d+)?)"
_REC = re.compile(rf"\[\s*{_PLAIN},\s*{_PLAIN},\s*{_PLAIN},\s*{_PLAIN}\s*\]")
_LOOSE = re.compile(rf"\[?\s*{_PLAIN}\s*[,\s]\s*{_PLAIN}\s*[,\s]\s*{_PLAIN}\s*[,\s]\s*{_PLAIN}\s*\]?")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")


def our_boxes(answer: str, size: Size) -> list[Box]:
    """Return every box of an answer in this model's form."""
    return [box_to_pixels(box, size) for labeled in parse_tolerant(answer) for box in labeled.boxes]


def vlmevalkit_box(answer: str, size: Size) -> Box | None:
    """Return the first box, with its corners sorted and clipped to the image; None if there is none."""
    match = _IN_BRACKETS.search(answer)
    values = [float(v) for v in (match.groups() if match else re.findall(_NUMBER, answer)[:4])]
    if len(values) < 4:
        return None
    largest = max(abs(v) for v in values)
    scale = (1.0, 1.0) if largest > 1000 else size if largest <= 1.5 else (size[0] / 1000, size[1] / 1000)
    xs = sorted(min(max(v * scale[0], 0.0), float(size[0])) for v in values[::2])
    ys = sorted(min(max(v * scale[1], 0.0), float(size[1])) for v in values[1::2])
    return (xs[0], ys[0], xs[1], ys[1])


def lmms_eval_box(answer: str, size: Size, gold: Box) -> Box | None:
    """Return the box that overlaps the gold box most; None if there is none."""
    boxes = list(_boxes_of(_read_json(answer))) or [[float(v) for v in m.groups()] for m in _LOOSE.finditer(answer)]
    if not boxes:
        return None
    scaled = [[v / 1000 * side for v, side in zip(box, size * 2, strict=True)] for box in boxes]
    readings = [reading for pair in zip(boxes, scaled, strict=True) for reading in pair]
    return max(readings, key=lambda box: iou(box, gold))


def lmms_eval_rec_box(answer: str, size: Size) -> Box | None:
    """Return the first four numbers in brackets, read as fractions of the image's sides; None if there are none."""
    match = _REC.search(answer)
    if match is None:
        return None
    x0, y0, x1, y1 = (float(v) for v in match.groups())
    return (x0 * size[0], y0 * size[1], x1 * size[0], y1 * size[1])


def _read_json(text: str) -> Any:
    fenced = re.search(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL | re.IGNORECASE)
    tries = [fenced[1]] if fenced else []
    tries.append(text)
    for opening, closing in ("[]", "{}"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            tries.append(text[start : end + 1])
    for attempt in tries:
        try:
            return json.loads(attempt)
        except (ValueError, RecursionError):
            continue
    return None


def _boxes_of(value: Any) -> Iterator[list[float]]:
    """Yield every list of four numbers in a JSON value. An object with a key like "bbox" yields that box only."""
    if isinstance(value, list):
        if len(value) == 4 and all(isinstance(v, int | float) for v in value):
            yield [float(v) for v in value]
        else:
            for item in value:
                yield from _boxes_of(item)
    elif isinstance(value, dict):
        named = (value[key] for key in _BOX_KEYS if isinstance(value.get(key), list) and len(value[key]) == 4)
        box = next(named, None)
        for item in [box] if box is not None else value.values():
            yield from _boxes_of(item)
