"""A chart as a picture: axes with numbers, grids, legends, titles; and where each text and each bar is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from experiments.nano.draw.base import Color, Written
from experiments.nano.draw.frame import scale_of
from vl2.data.record import BoxPx
from vl2.process.tiling import Size
from vl2.synth import fonts
from vl2.synth.chart import PALETTES
from vl2.synth.page import line_height, text_width
from vl2.synth.source import Dropped

if TYPE_CHECKING:
    from experiments.nano.draw.charts import Chart

LEAST_SEEN_PX = 9.0  # of letters, as the processor scales them
AXIS = 0.75  # share of charts with printed values that have a numbered axis as well
GRID = 0.5
SHADED = 0.15  # share of charts whose plot has a color of its own
SMALLEST = 0.7  # least size of numbers, as a share of that of names


@dataclass(frozen=True)
class Drawn:
    """Texts by "title", ("name", m), ("series", n), ("value", n, m), ("tick", k); marks by (n, m)."""

    written: Written
    marks: dict[tuple[int, int], BoxPx] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plot:
    """The area of the bars or lines, and how they are drawn."""

    box: tuple[float, float, float, float]
    font: fonts.Font
    small: fonts.Font  # for numbers
    colors: list[Color]
    ink: Color
    is_lying: bool

    def along(self, share: float) -> float:
        """Return where a part of the axis of values is."""
        x0, y0, x1, y1 = self.box
        return x0 + share * (x1 - x0) if self.is_lying else y1 - share * (y1 - y0)

    def slot(self, at: float, count: int) -> float:
        """Return where a place among the names is, from 0 to count."""
        x0, y0, x1, y1 = self.box
        return y0 + at * (y1 - y0) / count if self.is_lying else x0 + at * (x1 - x0) / count


def draw_chart(rng: random.Random, chart: Chart, size: Size, font: fonts.Font, title_font: fonts.Font) -> Drawn:
    """Draw a chart of a size, with letters as large as wished or as much smaller as they must be."""
    for _ in range(5):
        try:
            return _draw(rng, chart, size, font, title_font)
        except Dropped:
            smaller = int(font.size * 0.85)
            if smaller * scale_of(size) < LEAST_SEEN_PX:
                raise
            font, title_font = font.font_variant(size=smaller), title_font.font_variant(size=smaller)
    raise Dropped("the names are too long for the chart")


def _draw(rng: random.Random, chart: Chart, size: Size, font: fonts.Font, title_font: fonts.Font) -> Drawn:
    paper = rng.randint(236, 255)
    written = Written(Image.new("RGB", size, (paper, paper, rng.randint(paper - 6, 255))))
    palette = [_rgb(code) for code in rng.choice(PALETTES)]
    rng.shuffle(palette)
    is_lying, line, ink = (
        chart.kind == "sideways",
        line_height(font),
        rng.choice(((20, 20, 20), (60, 60, 60), (30, 30, 70))),
    )
    has_axis = not chart.is_printed or rng.random() < AXIS
    left, top, right, bottom = line * 0.5, line * 0.4, size[0] - line * 0.6, size[1] - line * 0.4
    if chart.title:
        big = title_font.font_variant(size=round(font.size * rng.uniform(1, 1.5)))
        big = title_font if text_width(big, chart.title) > size[0] - line else big
        if text_width(big, chart.title) > size[0] - 4:
            raise Dropped("the title is too long for the chart")
        at, anchor = ((size[0] / 2, top), "ma") if rng.random() < 0.7 else ((left, top), "la")
        written.write("title", at, chart.title, big, ink, anchor)
        top += line_height(big) * 1.15
    if len(chart.series) > 1:
        top, right = _legend(rng, written, chart, font, palette, (left, top, right, bottom), ink)
    ticks = [_tick(chart.step * k) for k in range(chart.num_steps + 1)]
    least = min(font.size, LEAST_SEEN_PX / scale_of(size))
    small = font.font_variant(size=round(max(least, font.size * rng.uniform(SMALLEST, 1.1))))
    wide = max(text_width(small, text) for text in ticks) if has_axis else 0
    if is_lying:
        left += max(text_width(font, name) for name in chart.names) + line * 0.4
        bottom -= line * 1.2 if has_axis else 0
        right -= max(text_width(small, text) for text in chart.labels[0]) * 1.1 if chart.is_printed else wide / 2
    else:
        left += wide + line * 0.3 if has_axis else 0
        bottom -= line * 1.2
        top += line * 1.1 if chart.is_printed else line * 0.5
    if right - left < size[0] * 0.3 or bottom - top < size[1] * 0.25:
        raise Dropped("the names are too long for the chart")
    plot = _Plot((left, top, right, bottom), font, small, palette, ink, is_lying)
    if has_axis and is_lying and wide * (len(ticks) + 1) > right - left:
        raise Dropped("the numbers are too long for the axis")
    if rng.random() < SHADED:
        written.page.draw.rectangle(plot.box, fill=tuple(rng.randint(222, 255) for _ in range(3)))
    _axis(rng, written, chart, plot, ticks if has_axis else [])
    _names(written, chart, plot)
    drawn = Drawn(written)
    (_lines if chart.kind == "line" else _bars)(rng, drawn, chart, plot)
    return drawn


def _legend(
    rng: random.Random,
    written: Written,
    chart: Chart,
    font: fonts.Font,
    palette: list[Color],
    room: tuple[float, float, float, float],
    ink: Color,
) -> tuple[float, float]:
    """Write the names of the series beside patches of their colors, above or to the right; return what room is left."""
    (left, top, right, _), line = room, line_height(font)
    patch = font.size * 0.8
    widths = [text_width(font, name) + patch * 2.2 for name in chart.series]
    if rng.random() < 0.6 and sum(widths) < right - left:
        x = left + (right - left - sum(widths)) / 2
        for n, width in enumerate(widths):
            written.page.draw.rectangle((x, top + line * 0.2, x + patch, top + line * 0.2 + patch), fill=palette[n])
            written.write(("series", n), (x + patch * 1.4, top), chart.series[n], font, ink)
            x += width
        return top + line * 1.3, right
    for n in range(len(widths)):
        x, y = right - max(widths), top + n * line * 1.2
        written.page.draw.rectangle((x, y + line * 0.2, x + patch, y + line * 0.2 + patch), fill=palette[n])
        written.write(("series", n), (x + patch * 1.4, y), chart.series[n], font, ink)
    return top, right - max(widths) - line * 0.4


def _tick(value: float) -> str:
    return f"{value:g}" if value < 10_000 else f"{value:.0f}"


def _axis(rng: random.Random, written: Written, chart: Chart, plot: _Plot, ticks: list[str]) -> None:
    """Draw the frame, the grid, and the numbers of the axis where it has any."""
    draw, (x0, y0, x1, y1) = written.page.draw, plot.box
    has_grid = rng.random() < GRID or not chart.is_printed
    pale = rng.randint(190, 225)
    for k, text in enumerate(ticks):
        at = plot.along(k / chart.num_steps)
        if has_grid:
            ends = (at, y0, at, y1) if plot.is_lying else (x0, at, x1, at)
            draw.line(ends, fill=(pale, pale, pale))
        place, anchor = ((at, y1 + 3), "ma") if plot.is_lying else ((x0 - 4, at), "rm")
        written.write(("tick", k), place, text, plot.small, plot.ink, anchor)
    if rng.random() < 0.3:
        draw.rectangle((x0, y0, x1, y1), outline=plot.ink)
    else:
        draw.line((x0, y0, x0, y1) if plot.is_lying else (x0, y1, x1, y1), fill=plot.ink)
        if rng.random() < 0.5:
            draw.line((x0, y1, x1, y1) if plot.is_lying else (x0, y0, x0, y1), fill=plot.ink)


def _names(written: Written, chart: Chart, plot: _Plot) -> None:
    x0, _, _, y1 = plot.box
    count, line = len(chart.names), line_height(plot.font)
    room = abs(plot.slot(1, count) - plot.slot(0, count))
    if room < (line if plot.is_lying else max(text_width(plot.font, name) for name in chart.names) + 3):
        raise Dropped("the names are too long for the chart")
    for m, name in enumerate(chart.names):
        at = plot.slot(m + 0.5, count)
        place, anchor = ((x0 - 4, at), "rm") if plot.is_lying else ((at, y1 + line * 0.15), "ma")
        written.write(("name", m), place, name, plot.font, plot.ink, anchor)


def _bars(rng: random.Random, drawn: Drawn, chart: Chart, plot: _Plot) -> None:
    count, num, draw = len(chart.names), len(chart.series), drawn.written.page.draw
    gap, in_colors = rng.uniform(0.15, 0.5), num == 1 and rng.random() < 0.35
    outline = (40, 40, 40) if rng.random() < 0.2 else None
    if chart.is_printed and not plot.is_lying:
        room = abs(plot.slot(1, count) - plot.slot(0, count)) * (1 if num == 1 else (1 - gap) / num)
        _check_room(chart, plot, room)
    for n in range(num):
        for m in range(count):
            first = m + gap / 2 + n * (1 - gap) / num
            a, b = plot.slot(first, count), plot.slot(first + (1 - gap) / num, count)
            start, end = plot.along(0), plot.along(chart.values[n][m] / chart.top)
            box = (start, a, max(end, start + 1), b) if plot.is_lying else (a, min(end, start - 1), b, start)
            color = plot.colors[(m if in_colors else n) % len(plot.colors)]
            draw.rectangle(box, fill=color, outline=outline)
            drawn.marks[n, m] = _inside(box, drawn.written.page.image.size)
            if chart.is_printed:
                place, anchor = ((end + 4, (a + b) / 2), "lm") if plot.is_lying else (((a + b) / 2, end - 1), "md")
                drawn.written.write(("value", n, m), place, chart.labels[n][m], plot.small, plot.ink, anchor)


def _check_room(chart: Chart, plot: _Plot, room: float) -> None:
    if max(text_width(plot.small, text) for row in chart.labels for text in row) > room:
        raise Dropped("the values are too long for the chart")


def _lines(rng: random.Random, drawn: Drawn, chart: Chart, plot: _Plot) -> None:
    draw, count = drawn.written.page.draw, len(chart.names)
    radius, width = plot.font.size * rng.uniform(0.15, 0.3), rng.randint(1, 3)
    if chart.is_printed:
        _check_room(chart, plot, plot.slot(1, count) - plot.slot(0, count))
    for n, row in enumerate(chart.values):
        points = [(plot.slot(m + 0.5, count), plot.along(value / chart.top)) for m, value in enumerate(row)]
        draw.line(points, fill=plot.colors[n], width=width)
        for m, (x, y) in enumerate(points):
            _marker(draw, (x, y), radius, plot.colors[n])
            box = (x - 2 * radius, y - 2 * radius, x + 2 * radius, y + 2 * radius)
            drawn.marks[n, m] = _inside(box, drawn.written.page.image.size)
            if chart.is_printed:
                beside = row[max(0, m - 1) : m + 2]
                is_below = row[m] == min(beside) and y + radius + line_height(plot.small) < plot.box[3]
                place, anchor = ((x, y + radius + 1), "ma") if is_below else ((x, y - radius - 1), "md")
                drawn.written.write(("value", n, m), place, chart.labels[n][m], plot.small, plot.ink, anchor)


def _inside(box: BoxPx, size: Size) -> BoxPx:
    return (max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3]))


def _marker(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, color: Color) -> None:
    draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=color)


def _rgb(code: str) -> Color:
    return (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16))
