"""The preview as one HTML page: pictures with their boxes, tokens as they are trained, counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vl2.curate.preview import COLORS, INK_ON_COLORS, Shown
from vl2.data.record import Record
from vl2.data.store.parse import Problem
from vl2.html_page import box_style, data_url, in_percent, render

MAX_SIDE_PX = 900  # of a picture in the page
MAX_LABELS = 4  # in a picture


def page(title: str, items: Sequence[Shown | Problem]) -> str:
    """Return the whole page."""
    return render(
        "curate/preview.jinja",
        title=title,
        style="curate/preview.css",
        items=items,
        is_problem=lambda item: isinstance(item, Problem),
        facts=_facts,
        counts=_counts,
        figures=_figures,
    )


@dataclass(frozen=True, kw_only=True)
class _DrawnBox:
    label: str
    style: str
    place: str  # of the label


@dataclass(frozen=True, kw_only=True)
class _Figure:
    url: str
    caption: str
    boxes: list[_DrawnBox]
    names: list[tuple[str, str]]  # labels with their colors, below a picture that has too many to stand in it


def _facts(record: Record) -> tuple[str, ...]:
    return record.category, record.language, record.source, record.licence


def _counts(item: Shown) -> tuple[tuple[str, int], ...]:
    counts = item.counts
    return (
        ("text", counts.text),
        ("trained", counts.trained),
        ("visual", counts.visual),
        ("in all", counts.total),
        ("tiles", counts.tiles),
    )


def _figures(item: Shown) -> Iterator[_Figure]:
    labels = list(dict.fromkeys(labelled.label for labelled in item.record.objects))
    colors = {label: _colors(number) for number, label in enumerate(labels)}
    for index, (image, (columns, rows)) in enumerate(zip(item.images, item.counts.grids, strict=True)):
        boxes = [
            _drawn(labelled.label, box, image.size, colors[labelled.label])
            for labelled in item.record.objects
            if labelled.image == index
            for box in labelled.boxes_px
        ]
        # Many labels in a small picture would hide what they name: they stand below it instead.
        shown = {box.label for box in boxes} if len(boxes) > MAX_LABELS else set()
        yield _Figure(
            url=data_url(image, max_side_px=MAX_SIDE_PX, quality=85),
            caption=f"image {index} · {image.width} × {image.height} px · {columns} × {rows} tiles",
            boxes=boxes,
            names=[(label, colors[label]) for label in labels if label in shown],
        )


def _colors(number: int) -> str:
    color = number % len(COLORS)
    return f"--box:{COLORS[color]};--ink:{INK_ON_COLORS[color]}"


def _drawn(label: str, box: Sequence[float], size: tuple[int, int], colors: str) -> _DrawnBox:
    percent = in_percent(box, size)
    # Near the top edge the label goes inside its box, near the right edge it ends with the box.
    place = " ".join(["inside"] * (percent[1] < 6) + ["right"] * (percent[0] > 70))
    return _DrawnBox(label=label, style=f"{box_style(percent, digits=3)};{colors}", place=place)
