"""The lines, pictures and drawings of a PDF page, in points with the origin at the upper left of the page as shown.

Horizontal and vertical lines are ruled lines, of tables for instance. Curves and slanted lines near each other are a
drawing. pypdfium2 is used through its raw interface, because it has no other for paths.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

BoxPt = tuple[float, float, float, float]
Point = tuple[float, float]

MAX_OBJECTS = 50_000  # of a page that are looked at
MAX_SEGMENTS = 2_000  # of a path that are looked at
THIN_PT = 3.0  # a filled rectangle up to this thickness is a ruled line


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture or a drawing on the page."""

    box: BoxPt
    is_drawing: bool = False


def box_around(corners: Sequence[Point]) -> BoxPt:
    """Return the smallest box around points."""
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def read_graphics(
    page: PdfPage, place: Callable[[float, float], Point], size: Point
) -> tuple[list[BoxPt], list[Picture]]:
    """Return the ruled lines of a page, and its pictures and drawings.

    `place` takes points of the file to points as shown, and `size` is that of the page as shown.
    """
    import pypdfium2.raw as raw

    rules: list[BoxPt] = []
    pictures: list[Picture] = []
    shown = {raw.FPDF_PAGEOBJ_PATH, raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_SHADING}
    forms: dict[int, tuple[float, ...]] = {}  # by the id of the form, which the list keeps from being given again
    kept: list[Any] = []
    for number, drawn in enumerate(page.get_objects(max_depth=4)):
        if number >= MAX_OBJECTS:
            break
        if drawn.type == raw.FPDF_PAGEOBJ_FORM:
            forms[id(drawn)] = _times(_matrix(drawn), forms.get(id(drawn.container), _IDENTITY))
            kept.append(drawn)
            continue
        if drawn.type not in shown:
            continue
        onto = forms.get(id(drawn.container), _IDENTITY)
        left, bottom, right, top = drawn.get_bounds()
        corners = [(left, bottom), (right, top), (left, top), (right, bottom)]
        box = box_around([place(*_moved(onto, corner)) for corner in corners])
        if drawn.type != raw.FPDF_PAGEOBJ_PATH:
            pictures.append(Picture(box=box))
            continue
        matrix = _times(_matrix(drawn), onto)
        lines, is_drawing = _path_lines(drawn, partial(_moved_and_placed, place, matrix))
        rules += lines
        if is_drawing:
            pictures.append(Picture(box=box, is_drawing=True))
    return list(_within(rules, size)), _merged(pictures, size)


_IDENTITY = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def _matrix(drawn: Any) -> tuple[float, ...]:
    matrix = drawn.get_matrix()
    return (matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f)


def _times(first: tuple[float, ...], then: tuple[float, ...]) -> tuple[float, ...]:
    a, b, c, d, e, f = first
    p, q, r, s, t, u = then
    return a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u


def _moved(by: tuple[float, ...], point: Point) -> Point:
    x, y = point
    return by[0] * x + by[2] * y + by[4], by[1] * x + by[3] * y + by[5]


def _moved_and_placed(place: Callable[[float, float], Point], by: tuple[float, ...], x: float, y: float) -> Point:
    return place(*_moved(by, (x, y)))


def _path_lines(drawn: Any, place: Callable[[float, float], Point]) -> tuple[list[BoxPt], bool]:
    """Return the horizontal and vertical lines of a path, and whether it also has curves or slanted lines."""
    import pypdfium2.raw as raw

    fill, stroke = ctypes.c_int(), ctypes.c_int()
    raw.FPDFPath_GetDrawMode(drawn, fill, stroke)
    if not fill.value and not stroke.value:
        return [], False  # a clipping path, which is not seen
    points: list[Point] = []
    lines: list[BoxPt] = []
    is_drawing = False
    x, y = ctypes.c_float(), ctypes.c_float()
    count = raw.FPDFPath_CountSegments(drawn)
    for index in range(min(count, MAX_SEGMENTS)):
        segment = raw.FPDFPath_GetPathSegment(drawn, index)
        raw.FPDFPathSegment_GetPoint(segment, x, y)
        point = place(x.value, y.value)
        kind = raw.FPDFPathSegment_GetType(segment)
        if kind == raw.FPDF_SEGMENT_MOVETO:
            points = [point]
        elif kind == raw.FPDF_SEGMENT_LINETO and points:
            line = box_around([points[-1], point])
            if min(line[2] - line[0], line[3] - line[1]) > 0.5:
                is_drawing = True
            elif stroke.value:
                lines.append(line)
            points.append(point)
        else:
            is_drawing = True
            points.append(point)
        if raw.FPDFPathSegment_GetClose(segment) and stroke.value and len(points) > 1:
            line = box_around([points[-1], points[0]])
            if min(line[2] - line[0], line[3] - line[1]) <= 0.5:
                lines.append(line)
    if fill.value and not is_drawing and points:
        lines += _filled_lines(points, is_stroked=bool(stroke.value))
    return lines, is_drawing


def _filled_lines(points: Sequence[Point], *, is_stroked: bool) -> list[BoxPt]:
    """Return the line that a thin filled rectangle is, or the sides of a larger one: the background of a cell."""
    x0, y0, x1, y1 = box = box_around(points)
    if min(x1 - x0, y1 - y0) <= THIN_PT:
        return [box]
    if is_stroked:
        return []  # its sides were already counted
    return [(x0, y0, x1, y0), (x0, y1, x1, y1), (x0, y0, x0, y1), (x1, y0, x1, y1)]


def _within(boxes: Sequence[BoxPt], size: Point) -> Iterator[BoxPt]:
    """Yield the boxes cut to the page, without those outside of it."""
    for x0, y0, x1, y1 in boxes:
        cut = max(0.0, x0), max(0.0, y0), min(size[0], x1), min(size[1], y1)
        if cut[0] <= cut[2] and cut[1] <= cut[3]:
            yield cut


MIN_PICTURE_PT = 24.0  # smaller ones are bullets, rules and ornaments
MIN_DRAWN = 4  # a drawing has at least so many curves and slanted lines
NEAR_PT = 12.0


def _merged(pictures: Sequence[Picture], size: Point) -> list[Picture]:
    """Join pictures that touch, as the strips of a scan do, and paths that are near each other to drawings.

    What is small and stands alone is left out.
    """
    found: list[Picture] = []
    for is_drawing, near in ((False, 1.0), (True, NEAR_PT)):
        boxes = list(_within([p.box for p in pictures if p.is_drawing == is_drawing], size))
        for box, count in _clusters(boxes, near):
            is_large = min(box[2] - box[0], box[3] - box[1]) >= MIN_PICTURE_PT
            if is_large and (not is_drawing or count >= MIN_DRAWN):
                found.append(Picture(box=box, is_drawing=is_drawing))
    return found


MAX_CLUSTERED = 2_000


def _clusters(boxes: Sequence[BoxPt], near: float) -> list[tuple[BoxPt, int]]:
    """Return the boxes around boxes that are at most `near` apart, and how many each holds."""
    clusters: list[tuple[BoxPt, int]] = []
    for box in boxes[:MAX_CLUSTERED]:
        joined, count, rest = box, 1, []
        for other, number in clusters:
            if _distance(joined, other) <= near:
                joined, count = _around(joined, other), count + number
            else:
                rest.append((other, number))
        clusters = [*rest, (joined, count)]
    while True:  # a cluster that grew may now touch one that it was compared with before
        before = len(clusters)
        merged: list[tuple[BoxPt, int]] = []
        for box, count in clusters:
            for index, (other, number) in enumerate(merged):
                if _distance(box, other) <= near:
                    merged[index] = _around(box, other), count + number
                    break
            else:
                merged.append((box, count))
        clusters = merged
        if len(clusters) == before:
            return clusters


def _around(a: BoxPt, b: BoxPt) -> BoxPt:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _distance(a: BoxPt, b: BoxPt) -> float:
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3], 0.0)
