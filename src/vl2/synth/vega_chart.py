"""Draw charts of tables with Vega-Lite, the library below Vega-Altair, in its themes (extra `charts`)."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFont

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.synth import fonts
from vl2.synth.tables import Table

# Vega's default look, and the themes of the package vega-themes that keep a light or dark plain background.
THEMES: tuple[Any, ...] = (  # vl-convert's annotations list them one by one, and plain text is not one of those
    "", "", "dark", "excel", "fivethirtyeight", "ggplot2", "googlecharts", "latimes", "powerbi", "quartz",
    "urbaninstitute", "vox", "carbonwhite", "carbong10",
)  # fmt: skip
ROOM = 1.16  # the axis of values is longer than the largest value by this factor, so that printed numbers fit


def draw_vega(
    table: Table, cells: list[str], kind: str, face: fonts.Face, rng: random.Random, *, printed: bool
) -> tuple[Image.Image, str]:
    """Return a chart of the table's second column, labeled by the first, and the name of its theme.

    `cells` are the values as text, which the chart shows if `printed`. Raise UserError if vl-convert is not installed.
    """
    try:
        import vl_convert  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(f"drawing charts with Vega-Lite needs vl-convert: {install_extra('charts')}") from None
    theme = rng.choice(THEMES)
    chart = spec(table, cells, kind, rng, printed=printed)
    # Some themes have letters of 8 px, too small for a picture that is scaled down.
    chart["config"] = {"font": _family(face), "axis": {"labelFontSize": 12, "titleFontSize": 13},
                       "legend": {"labelFontSize": 13}, "title": {"fontSize": 15},
                       "text": {"fontSize": 12, "fill": "#eee" if theme == "dark" else "#222"}}  # fmt: skip
    data = vl_convert.vegalite_to_png(
        chart, theme=theme or None, scale=rng.uniform(1.0, 1.5), allowed_base_urls=[], show_warnings=False
    )
    image = Image.open(io.BytesIO(data))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    return flat, theme or "vega"


@lru_cache(maxsize=64)
def _family(face: fonts.Face) -> str:
    """Return the family of a face, after its folder was made known to Vega's renderer."""
    import vl_convert

    if not face.path:
        return "sans-serif"
    vl_convert.register_font_directory(str(Path(face.path).parent))
    return str(ImageFont.truetype(face.path, 12, index=face.index).getname()[0])


def spec(table: Table, cells: list[str], kind: str, rng: random.Random, *, printed: bool) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart."""
    names = table.column(0)
    values = [float(cell) for cell in cells]
    rows = [{"name": n, "value": v, "text": c} for n, v, c in zip(names, values, cells, strict=True)]
    title = f"{table.title}: {table.header[1]}" if table.title and rng.random() < 0.6 else table.header[1]
    chart: dict[str, Any] = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": title, "data": {"values": rows}, "width": rng.randint(300, 460), "height": rng.randint(220, 340),
    }  # fmt: skip
    if kind == "pie":
        return {**chart, **_pie(names, cells, printed=printed)}
    low, high = min(0.0, *values), max(0.0, *values)
    # Lines and points may start above zero, bars may not.
    zero = kind in ("bar", "barh") or rng.random() < 0.5
    scale: dict[str, Any] = {"domain": [low * ROOM, high * ROOM]} if zero else {"zero": False, "padding": 22}
    titled = rng.random() < 0.6
    named: dict[str, Any] = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "title": table.header[0] if titled else None,
    }
    measured = {
        "field": "value", "type": "quantitative", "title": table.header[1] if titled else None, "scale": scale,
        "axis": {"grid": rng.random() < 0.6},
    }  # fmt: skip
    across = kind == "barh"
    encoding: dict[str, Any] = {"x": measured, "y": named} if across else {"x": named, "y": measured}
    if not across:
        named["axis"] = {"labelAngle": -40 if sum(map(len, names)) > 34 else 0, "labelLimit": 300}
    mark: dict[str, Any] = {"type": {"bar": "bar", "barh": "bar", "line": "line", "scatter": "point"}[kind]}
    if kind == "line":
        mark["point"] = True
    elif kind == "scatter":
        mark |= {"filled": True, "size": rng.randint(50, 120)}
    elif rng.random() < 0.4:
        encoding["color"] = {"field": "name", "type": "nominal", "legend": None}
    layers: list[dict[str, Any]] = [{"mark": mark}]
    if printed:
        away = {"align": "left", "dx": 4} if across else {"baseline": "bottom", "dy": -6}
        layers.append({"mark": {"type": "text", **away}, "encoding": {"text": {"field": "text"}, "color": {}}})
        if "color" in encoding:  # bars of several colors have numbers of one
            layers[0]["encoding"] = {"color": encoding.pop("color")}
        layers[1]["encoding"].pop("color")
    return {**chart, "encoding": encoding, "layer": layers}


def _pie(names: list[str], cells: list[str], *, printed: bool) -> dict[str, Any]:
    """Return the parts of a pie chart with a legend, which has the values if they are printed."""
    labels = [f"{name} ({cell})" for name, cell in zip(names, cells, strict=True)] if printed else names
    rows = [{"name": label, "value": float(cell)} for label, cell in zip(labels, cells, strict=True)]
    color = {"field": "name", "type": "nominal", "sort": labels, "legend": {"title": None, "labelLimit": 300}}
    return {
        "data": {"values": rows},
        "mark": {"type": "arc", "innerRadius": 0},
        "encoding": {"theta": {"field": "value", "type": "quantitative"}, "color": color,
                     "order": {"field": "value", "type": "quantitative", "sort": "descending"}},
    }  # fmt: skip
