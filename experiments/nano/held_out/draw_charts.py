"""Draw a chart by matplotlib or Vega-Altair, exactly as large as it says."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from experiments.nano.held_out.charts import Chart
from experiments.nano.held_out.items import Redraw, picture_of
from vl2.errors import UserError

DPI = 100


def draw(chart: Chart) -> Image.Image:
    """Draw a chart. Redraw where its texts would run into each other."""
    _check_room(chart)
    image = _by_altair(chart) if chart.library == "altair" else _by_matplotlib(chart)
    if image.size != chart.size:
        raise Redraw(f"{chart.library} drew {image.size}, not {chart.size}")
    return image


def _check_room(chart: Chart) -> None:
    font = ImageFont.truetype(str(chart.font), chart.font_px)
    room = chart.size[0] - 70 - (90 if len(chart.series) > 1 else 0)
    if chart.kind != "lying":
        if max(font.getlength(name) for name in chart.names) > room / len(chart.names) - 3:
            raise Redraw("the names are too long")
        printed = max(font.getlength(value) for row in chart.values for value in row)
        if chart.is_printed and printed > room / len(chart.names) / len(chart.series) - 2:
            raise Redraw("the numbers are too long")
    elif max(font.getlength(name) for name in chart.names) > chart.size[0] * 0.35:
        raise Redraw("the names are too long")


def _by_matplotlib(chart: Chart) -> Image.Image:
    figure = Figure(figsize=(chart.size[0] / DPI, chart.size[1] / DPI), dpi=DPI, layout="constrained")
    figure.set_facecolor("#ffffff" if chart.is_plain else "#f6f4ef")
    axes = figure.add_subplot()
    prop = font_manager.FontProperties(fname=str(chart.font), size=chart.font_px * 72 / DPI)
    _plot(axes, chart, prop)
    axes.set_title(chart.title, fontproperties=prop)
    if chart.has_grid:
        axes.grid(axis="x" if chart.kind == "lying" else "y", color="#d0d0d0", linewidth=0.6)
        axes.set_axisbelow(True)
    if chart.is_plain:
        axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        axes.legend(prop=prop, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=not chart.is_plain)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontproperties(prop)
    return picture_of(figure)


def _plot(axes: Axes, chart: Chart, prop: font_manager.FontProperties) -> None:
    places = list(range(len(chart.names)))
    top = max(max(row) for row in chart.numbers)
    if chart.kind == "line":
        axes.plot(places, chart.numbers[0], color=chart.palette[0], marker="o", markersize=4, linewidth=1.6)
        axes.set_xlim(-0.4, len(places) - 0.6)
        for x, value, number in zip(places, chart.values[0], chart.numbers[0], strict=True):
            if chart.is_printed:
                place: dict[str, Any] = {"va": "top" if chart.is_dip(x) else "bottom", "ha": "center"}
                offset = (0, -5 if chart.is_dip(x) else 4)
                axes.annotate(value, (x, number), offset, textcoords="offset points", fontproperties=prop, **place)
        axes.set_ylim(0, top * 1.25)
        axes.set_xticks(places, chart.names)
        return
    thick = 0.8 / len(chart.series) if len(chart.series) > 1 else 0.62
    for n, (name, row) in enumerate(zip(chart.series, chart.numbers, strict=True)):
        at = [place + (n - (len(chart.series) - 1) / 2) * thick for place in places]
        bar = axes.barh if chart.kind == "lying" else axes.bar
        drawn = bar(at, row, thick, color=chart.palette[n], label=name or None)
        if chart.is_printed:
            axes.bar_label(drawn, chart.values[n], padding=2, fontproperties=prop)
    if chart.kind == "lying":
        axes.set_xlim(0, top * 1.22)
        axes.set_yticks(places, chart.names)
        axes.invert_yaxis()
    else:
        axes.set_ylim(0, top * 1.18)
        axes.set_xticks(places, chart.names)


def _by_altair(chart: Chart) -> Image.Image:
    try:
        import altair as alt  # type: ignore[import-not-found, unused-ignore]
        import vl_convert  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "half of the charts are drawn by Altair: pip install -r experiments/nano/held_out/requirements.txt"
        ) from None
    family = _register(chart.font)
    rows = [
        {"name": name, "series": series, "number": number, "printed": value, "is_dip": chart.is_dip(n)}
        for series, numbers, values in zip(chart.series, chart.numbers, chart.values, strict=True)
        for n, (name, number, value) in enumerate(zip(chart.names, numbers, values, strict=True))
    ]
    top = max(max(row) for row in chart.numbers)
    names: dict[str, Any] = {"sort": None, "title": None}
    number = alt.Scale(domain=[0, top * 1.2], nice=False)
    amount: dict[str, Any] = {"title": None, "scale": number, "axis": alt.Axis(grid=chart.has_grid, tickCount=5)}
    base: Any = alt.Chart(alt.InlineData(values=rows))
    color: Any = alt.value(chart.palette[0])
    if len(chart.series) > 1:
        scale = alt.Scale(domain=list(chart.series), range=list(chart.palette[: len(chart.series)]))
        color = alt.Color("series:N", title=None, scale=scale, sort=None)
    upright = alt.Axis(labelAngle=0)
    if chart.kind == "lying":
        base = base.encode(y=alt.Y("name:N", **names), x=alt.X("number:Q", **amount))
        beside: dict[str, Any] = {"align": "left", "dx": 3}
    else:
        base = base.encode(x=alt.X("name:N", axis=upright, **names), y=alt.Y("number:Q", **amount))
        beside = {"baseline": "bottom", "dy": -3}
        if len(chart.series) > 1:
            base = base.encode(xOffset=alt.XOffset("series:N", sort=list(chart.series)))
    mark = base.mark_line(point=True) if chart.kind == "line" else base.mark_bar()
    layers = [mark.encode(color=color)]
    if chart.is_printed:
        printed = base.encode(text="printed:N")
        letters: dict[str, Any] = {"font": family, "fontSize": chart.font_px}
        if chart.kind == "line":
            layers.append(printed.transform_filter("datum.is_dip").mark_text(baseline="top", dy=6, **letters))
            printed = printed.transform_filter("!datum.is_dip")
        layers.append(printed.mark_text(**beside, **letters))
    whole = (
        alt.layer(*layers)
        .properties(
            title=chart.title,
            width=chart.size[0],
            height=chart.size[1],
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
            background="#ffffff" if chart.is_plain else "#f3f6f8",
            padding=6,
        )
        .configure(font=family)
        .configure_axis(labelFontSize=chart.font_px, labelLimit=400, labelOverlap=False)
        .configure_legend(labelFontSize=chart.font_px)
        .configure_title(fontSize=chart.font_px + 1)
        .configure_view(stroke=None if chart.is_plain else "#999999")
    )
    png = vl_convert.vegalite_to_png(whole.to_dict(), scale=1)
    return Image.open(io.BytesIO(png)).convert("RGB")


@cache
def _register(font: Path) -> str:
    """Make the fonts of a folder known to the renderer and return the family of one."""
    import vl_convert

    vl_convert.register_font_directory(str(font.parent))
    return str(ImageFont.truetype(str(font), 12).getname()[0])
