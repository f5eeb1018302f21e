"""The order in which a page is read: it is cut at the gutters between its columns, as often as there are any.

This is a recursive cut in the manner of the XY-cut. A gutter is a vertical strip that nothing crosses over several
lines, with lines of running text on both sides. What stands above and below that part is cut by itself. Columns of a
table are no columns of text: their lines are short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vl2.documents.pdf_graphics import BoxPt

MIN_GUTTER_EM = 0.8
MIN_COLUMN_EM = 8.0  # narrower ones are columns of a table
MIN_LINES = 3  # on each side of a gutter
MIN_FILLED = 0.5  # how far the lines of a column fill it, on average
WELL_FILLED = 0.8  # running text fills its column at least so far
MOSTLY = 0.6
LONGEST_TABLE = 25  # rows; what is longer and has no lines is taken for columns
MAX_DEPTH = 12
_CANDIDATES = 12
_BIN_PT = 3.0

Boxes = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Gutter:
    x: float
    top: float
    bottom: float


def reading_order(boxes: Sequence[BoxPt], em: float) -> list[list[int]]:
    """Return groups of the boxes' indices, in reading order. Each group stands in one column.

    `em` is the usual size of the text, in the unit of the boxes. Within a group the order is that of the input.
    """
    if not boxes:
        return []
    return _cut(np.asarray(boxes, dtype=np.float64), np.arange(len(boxes)), em, MAX_DEPTH)


def _cut(boxes: Boxes, members: NDArray[np.int64], em: float, depth: int) -> list[list[int]]:
    gutter = _find_gutter(boxes[members], em) if depth and len(members) > 1 else None
    if gutter is None:
        return [members.tolist()] if len(members) else []
    middle_y = (boxes[members, 1] + boxes[members, 3]) / 2
    middle_x = (boxes[members, 0] + boxes[members, 2]) / 2
    is_above, is_below = middle_y < gutter.top, middle_y > gutter.bottom
    is_inside = ~is_above & ~is_below
    parts = (
        members[is_above],
        members[is_inside & (middle_x < gutter.x)],
        members[is_inside & (middle_x >= gutter.x)],
        members[is_below],
    )
    if max(map(len, parts)) == len(members):
        return [members.tolist()]
    return [group for part in parts for group in _cut(boxes, part, em, depth - 1)]


def _find_gutter(boxes: Boxes, em: float) -> _Gutter | None:
    """Return the gutter with the most lines beside it."""
    best, most = None, 0
    for x in _column_starts(boxes, em):
        low, high = x - MIN_GUTTER_EM * em, x - 0.05 * em
        crosses = (boxes[:, 0] < high) & (boxes[:, 2] > low)
        for top, bottom in _free_spans(boxes[crosses]):
            middle = (boxes[:, 1] + boxes[:, 3]) / 2
            inside = boxes[(middle > top) & (middle < bottom)]
            left, right = inside[inside[:, 2] <= high], inside[inside[:, 0] >= low]
            sides = _measure(left, em), _measure(right, em)
            count = min(side.count for side in sides)
            if count > most and not _are_rows(*sides, em):
                best, most = _Gutter(x=(low + high) / 2, top=top, bottom=bottom), count
    return best


def _column_starts(boxes: Boxes, em: float) -> list[float]:
    """Return the left edges that several boxes after a wide gap share."""
    order = np.argsort(boxes[:, 0])
    sorted_boxes = boxes[order]
    middle, half = (sorted_boxes[:, 1] + sorted_boxes[:, 3]) / 2, (sorted_boxes[:, 3] - sorted_boxes[:, 1]) / 2
    starts: Counter[int] = Counter()
    edges: dict[int, float] = {}
    for index in range(1, len(sorted_boxes)):
        x0 = sorted_boxes[index, 0]
        same_row = np.abs(middle[:index] - middle[index]) < half[:index] + 0.3 * half[index]
        ends = sorted_boxes[:index, 2][same_row]
        if len(ends) and x0 - ends.max() >= MIN_GUTTER_EM * em:
            key = round(x0 / _BIN_PT)
            starts[key] += 1
            edges[key] = min(edges.get(key, x0), x0)
    return [edges[key] for key, count in starts.most_common(_CANDIDATES) if count >= 2]


def _free_spans(crossing: Boxes) -> list[tuple[float, float]]:
    """Return the vertical spans between the boxes that cross a strip."""
    spans, top = [], -np.inf
    for y0, y1 in sorted((box[1], box[3]) for box in crossing):
        if y0 > top:
            spans.append((top, y0))
        top = max(top, y1)
    return [*spans, (top, np.inf)]


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The lines on one side of a gutter."""

    middles: Sequence[float]  # heights of the lines
    filled: float  # how far the lines fill the column, on average
    count: int  # lines, with tall boxes counted by their height; 0 if this is no column of text


def _measure(boxes: Boxes, em: float) -> _Side:
    width = boxes[:, 2].max() - boxes[:, 0].min() if len(boxes) else 0.0
    if width < MIN_COLUMN_EM * em:
        return _Side(middles=(), filled=0.0, count=0)
    lines: list[tuple[float, float, float]] = []  # middle, left, right
    num_tall, bottom = 0, -np.inf
    for x0, y0, x1, y1 in boxes[np.argsort((boxes[:, 1] + boxes[:, 3]) / 2)]:
        middle = (y0 + y1) / 2
        if y1 - y0 > 4 * em:
            num_tall += int((y1 - y0) / (1.2 * em))
        elif middle > bottom - 0.3 * em:
            lines.append((middle, x0, x1))
            bottom = y1
        else:
            first, left, right = lines[-1]
            lines[-1] = first, min(left, x0), max(right, x1)
            bottom = max(bottom, y1)
    filled = sum(right - left for _, left, right in lines) / len(lines) / width if lines else 1.0
    count = len(lines) + num_tall
    is_text = count >= MIN_LINES and filled >= MIN_FILLED
    return _Side(middles=[middle for middle, _, _ in lines], filled=filled, count=count if is_text else 0)


def _are_rows(left: _Side, right: _Side, em: float) -> bool:
    """Tell rows of a table, which stand side by side and do not fill their columns, from columns of text."""
    if min(left.filled, right.filled) >= WELL_FILLED or not left.middles or not right.middles:
        return False
    if min(len(left.middles), len(right.middles)) > LONGEST_TABLE:
        return False
    fewer, more = sorted((left.middles, right.middles), key=len)
    paired = sum(any(abs(a - b) < 0.25 * em for b in more) for a in fewer)
    return paired >= MOSTLY * len(fewer)
