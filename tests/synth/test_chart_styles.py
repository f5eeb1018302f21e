"""Charts in the styles of several libraries: what is drawn has the lengths of the values, in every style."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.catalog import make_source
from vl2.synth.chart import STYLES, Chart, draw_chart
from vl2.synth.source import generate
from vl2.synth.tables import Table
from vl2.synth.vega_chart import draw_vega, spec

TABLE = Table(title="Towns", header=("Town", "People"), rows=(("Ada", "10"), ("Bel", "40"), ("Cor", "20")))
BLUE = (0x4C, 0x78, 0xA8)  # the first color of Vega's default scheme


@pytest.mark.parametrize("style", sorted(set(STYLES)))
def test_bars_of_every_style_have_the_lengths_of_their_values(style: str) -> None:
    pytest.importorskip("matplotlib")
    # The same chart with other values: only the ends of bars move, so rows differ over the difference of the lengths.
    tables = [TABLE, Table(title="Towns", header=TABLE.header, rows=(("Ada", "30"), *TABLE.rows[1:]))]
    first, second = (
        np.asarray(draw_chart(table, "barh", fonts.BUILT_IN, random.Random(3), printed=False, style=style)).astype(int)
        for table in tables
    )
    differs = np.abs(first - second).sum(axis=2) > 24
    rows, columns = differs.nonzero()
    assert rows.size
    # The axis ends at the longest bar, 40, with 14 % of room beside it at most, and begins at 0 near the left edge.
    extent = columns.max() - columns.min() + 1
    assert 0.5 * 0.4 * first.shape[1] < extent < 0.5 * first.shape[1]
    # The change is one bar high: a solid block, but for grid lines in front of it.
    block = differs[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert block.mean() > 0.9


def test_libraries_are_checked_and_styles_vary() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="libraries of chart are matplotlib and vega, or one of them, got plotly"):
        make_source("chart", {"libraries": "plotly"})
    source = Chart(tasks=("kind",))
    styles = {source.draft(random.Random(n)).traits["style"] for n in range(12)}
    assert len(styles) > 4


@pytest.mark.parametrize("seed", range(4))
def test_bars_of_vega_have_the_lengths_of_their_values(seed: int) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    rng = random.Random(seed)
    chart = spec(TABLE, ["10", "40", "20"], "barh", rng, printed=False)
    while "color" in chart["encoding"]:
        chart = spec(TABLE, ["10", "40", "20"], "barh", rng, printed=False)
    image = Image.open(io.BytesIO(vl_convert.vegalite_to_png(chart))).convert("RGB")
    is_bar = np.abs(np.asarray(image).astype(int) - BLUE).sum(axis=2) < 12
    lengths = sorted({int(n) for n in is_bar.sum(axis=1)} - set(range(20)))
    assert len(lengths) >= 3
    assert lengths[0] / lengths[-1] == pytest.approx(0.25, abs=0.02)


def test_vega_draws_every_kind_in_every_theme_with_the_values_asked_for() -> None:
    pytest.importorskip("vl_convert")
    themes = set()
    for seed, kind in enumerate(("bar", "barh", "line", "pie", "scatter") * 4):
        cells = ["10", "40", "20"]
        image, theme = draw_vega(TABLE, cells, kind, fonts.BUILT_IN, random.Random(seed), printed=True)
        assert image.mode == "RGB"
        assert len(image.getcolors(image.width * image.height) or ()) > 8
        themes.add(theme)
    assert len(themes) > 6
    records = list(generate(Chart(tasks=("value",), libraries=("vega",)), 3))
    assert all(record.images[0].width > 150 for record in records)


def test_the_values_are_in_the_specification_only_as_text_if_they_are_printed() -> None:
    for kind in ("bar", "barh", "line", "scatter"):
        for printed in (False, True):
            chart = spec(TABLE, ["10", "40", "20"], kind, random.Random(1), printed=printed)
            marks = [layer["mark"]["type"] for layer in chart["layer"]]
            assert ("text" in marks) == printed
            assert [row["text"] for row in chart["data"]["values"]] == ["10", "40", "20"]
    assert "40" in str(spec(TABLE, ["10", "40", "20"], "pie", random.Random(1), printed=True)["encoding"])
