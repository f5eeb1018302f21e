"""Draw charts of tables, and ask about values, extremes, comparisons and the table.

matplotlib (extra `data`) draws in its own style and in those of ggplot, seaborn and others; Vega-Lite (extra `charts`)
in its themes.

Questions for a value are asked only if the chart prints its numbers. Without printed numbers, the questions are about
more and less.
"""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.synth import fonts
from vl2.synth.draft import Draft
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.table_questions import Asked, ask_number
from vl2.synth.tables import Table, choose_table, made_up, tables_in, write_number
from vl2.synth.vega_chart import draw_vega

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("bar", "barh", "line", "pie", "scatter")
ATTEMPTS = 120
MAX_NAME = 16  # greatest number of characters of a label on an axis
EXACT = ("value", "difference", "sum", "count", "table")  # tasks that need the printed numbers
LIBRARIES = ("matplotlib", "vega")
# Style sheets that come with matplotlib; "" is its own look with our palettes, grids and frames.
STYLES = (
    "", "", "", "default", "ggplot", "bmh", "fivethirtyeight", "Solarize_Light2", "dark_background",
    "grayscale", "tableau-colorblind10", "petroff10", "seaborn-v0_8", "seaborn-v0_8-darkgrid", "seaborn-v0_8-whitegrid",
    "seaborn-v0_8-ticks", "seaborn-v0_8-pastel", "seaborn-v0_8-muted", "seaborn-v0_8-colorblind",
)  # fmt: skip
PALETTES = (
    ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd"),
    ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#999999", "#66c2a5", "#e6ab02"),
    ("#264653", "#2a9d8f", "#e9c46a", "#f4a261", "#e76f51", "#8ab17d", "#6d597a", "#b56576", "#355070", "#eaac8b"),
)
VALUE = {
    "en": ('What is the value of "{column}" for {row}?', "What value does the chart show for {row}?"),
    "zh": ("{row}的“{column}”是多少？", "图中{row}的数值是多少？"),
}
TO_TABLE = {
    "en": ("Turn this chart into a Markdown table.", "Extract the data of the chart as a Markdown table."),
    "zh": ("把这张图转换成Markdown表格。", "用Markdown表格写出图中的数据。"),
}
WHICH_KIND = {"en": "What type of chart is this?", "zh": "这是什么类型的图表？"}
KIND_NAMES = {
    "en": {"bar": "bar chart", "barh": "horizontal bar chart", "line": "line chart", "pie": "pie chart",
           "scatter": "scatter plot"},
    "zh": {"bar": "柱状图", "barh": "条形图", "line": "折线图", "pie": "饼图", "scatter": "散点图"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chart(Source):
    """Bar, line, pie and scatter charts of one column of a table."""

    name = "chart"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "value", "max", "min", "compare", "difference", "sum", "count", "table", "kind",
    )  # fmt: skip

    tables: str | None = None  # folder of tables, see `read_tables`; None uses the built-in tables
    libraries: tuple[str, ...] = ("matplotlib",)  # which to draw with: matplotlib, vega
    font_folders: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.libraries or not set(self.libraries) <= set(LIBRARIES):
            given = ", ".join(self.libraries) or "none"
            raise UserError(f"libraries of chart are {' and '.join(LIBRARIES)}, or one of them, got {given}")

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.tables else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        return () if self.tables else ("tables",)

    def draft(self, rng: random.Random) -> Draft:
        task, kind = self.pick_task(rng), rng.choice(KINDS)
        printed = task in EXACT or rng.random() < 0.5
        invent = rng.random() < 1 / 3
        for _ in range(ATTEMPTS):
            table = self._table(rng, kind, invent=invent, exact=task in EXACT)
            asked = _ask(table, task, kind, rng) if table else None
            face = fonts.choose_face(rng, table.text + "0123456789.-", self.font_folders) if table else None
            if table and asked and face:
                break
        else:
            raise Dropped("no table fits the chart")
        if rng.choice(self.libraries) == "vega":
            cells = [_printed(cell) for cell in table.column(1)]
            image, style = draw_vega(table, cells, kind, face, rng, printed=printed)
        else:
            style = rng.choice(STYLES)
            image = draw_chart(table, kind, face, rng, printed=printed, style=style)
        traits = {"task": task, "kind": kind, "font": face.name, "style": style}
        draft = Draft(language=table.language, traits=traits)
        draft.picture(image)
        draft.ask(asked.question, asked.answer)
        return draft

    def _table(self, rng: random.Random, kind: str, *, invent: bool, exact: bool) -> Table | None:
        """Return a table of names and one column of numbers for this kind of chart, or None if the draw does not fit.

        `invent` makes a table with random numbers; otherwise one of the given tables is used.
        """
        languages = fonts.languages(self.font_folders)
        table: Table | None
        if invent and not self.tables:
            table = made_up(rng, rng.choice(languages))
        else:
            table = choose_table(rng, tables_in(self.tables, languages), max_rows=9, max_columns=5)
            if invent and table is not None:  # random numbers, with the names of a real table
                table = made_up(rng, table.language, table.column(0))
        if table is None or not table.numeric_columns:
            return None
        table = table.part(range(len(table.rows)), [0, rng.choice(table.numeric_columns)])
        return table if _can_show(table, kind, exact=exact) else None


def _can_show(table: Table, kind: str, *, exact: bool) -> bool:
    """Return whether a chart of this kind can show the table, so that differences between values are visible.

    `exact` allows values close to each other, because the chart prints its numbers.
    """
    values = table.numbers(1)
    assert values is not None
    low, high = min(values), max(values)
    if high <= low or any(len(name) > MAX_NAME for name in table.column(0)) or not 3 <= len(values) <= 9:
        return False
    if kind == "pie" and (low <= 0 or low * 40 < sum(values) or len(values) > 7):
        return False
    # If two bars differed by a pixel, the answer would be a guess.
    least = (high - min(low, Decimal(0))) / 40
    close = any(0 < b - a < least for a, b in itertools.pairwise(sorted(values)))
    return exact or not close


def _ask(table: Table, task: str, kind: str, rng: random.Random) -> Asked | None:
    lang = table.language
    if task == "value":
        row = rng.choice(table.rows)
        question = rng.choice(VALUE[lang]).format(column=table.header[1], row=row[0])
        return Asked(kind=task, question=question, answer=_printed(row[1]))
    if task == "table":
        shown = Table(title="", header=table.header, rows=tuple((name, _printed(cell)) for name, cell in table.rows))
        return Asked(kind=task, question=rng.choice(TO_TABLE[lang]), answer=shown.as_markdown())
    if task == "kind":
        return Asked(kind=task, question=WHICH_KIND[lang], answer=KIND_NAMES[lang][kind])
    return ask_number(table, rng, task, column=1)


def _printed(cell: str) -> str:
    """Return the number of a cell in the notation of the chart."""
    return write_number(Decimal(cell.strip().replace(",", "")))


def draw_chart(
    table: Table, kind: str, face: fonts.Face, rng: random.Random, *, printed: bool, style: str = ""
) -> Image.Image:
    """Return a chart of the table: the numbers of its second column, labeled with the names in the first.

    `printed` adds the numbers to the chart. `style` is a style sheet of matplotlib, and "" is random colors and grids.
    Raise UserError if matplotlib is not installed.
    """
    try:
        import matplotlib.style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"drawing charts needs matplotlib: {install_extra('data')}") from None
    size = (rng.uniform(4.6, 7.0), rng.uniform(3.4, 4.8))
    buffer = io.BytesIO()
    with matplotlib.style.context(style or "default"):
        figure = Figure(figsize=size, dpi=rng.choice((80, 96, 110)), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _decorate(axes, table, kind, rng, styled=bool(style))
        colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] if style else rng.choice(PALETTES)
        _plot(axes, table, kind, rng, list(colors), printed=printed)
        _set_font(figure, face, rng.uniform(8.5, 11))
        canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return Image.open(buffer).convert("RGB")


def _decorate(axes: Axes, table: Table, kind: str, rng: random.Random, *, styled: bool) -> None:
    axes.set_title(_plain(f"{table.title}: {table.header[1]}" if rng.random() < 0.6 else table.header[1]))
    if kind == "pie":
        return
    named, measured = (axes.set_ylabel, axes.set_xlabel) if kind == "barh" else (axes.set_xlabel, axes.set_ylabel)
    if rng.random() < 0.6:
        named(_plain(table.header[0]))
        measured(_plain(table.header[1]))
    if styled:  # the style says how grid, frame and background look
        axes.set_axisbelow(True)
        return
    if rng.random() < 0.5:
        axes.grid(True, alpha=0.35)
        axes.set_axisbelow(True)
    if rng.random() < 0.5:
        axes.spines[["top", "right"]].set_visible(False)
    if rng.random() < 0.3:
        axes.set_facecolor(rng.choice(("#f2f2f7", "#fbf7ef", "#eef5f2")))


def _plot(axes: Axes, table: Table, kind: str, rng: random.Random, colors: list[str], *, printed: bool) -> None:
    names = [_plain(name) for name in table.column(0)]
    cells = [_printed(cell) for cell in table.column(1)]
    values = [float(cell) for cell in cells]
    rng.shuffle(colors)
    colors = colors * (1 + len(names) // len(colors))
    places = list(range(len(names)))
    if kind == "pie":
        shown = [f"{name} ({cell})" for name, cell in zip(names, cells, strict=True)] if printed else names
        axes.pie(values, labels=shown, colors=colors, startangle=rng.randint(0, 359))
        return
    if kind in ("bar", "barh"):
        each = colors[: len(names)] if rng.random() < 0.4 else colors[0]
        draw: Any = axes.bar if kind == "bar" else axes.barh
        bars = draw(places, values, rng.uniform(0.5, 0.85), color=each)
        if printed:
            axes.bar_label(bars, cells, padding=2)
    else:
        style = {"marker": rng.choice("os^D"), "color": colors[0], "linestyle": "-" if kind == "line" else "none"}
        axes.plot(places, values, markersize=rng.uniform(5, 9), **style)  # type: ignore[arg-type]
        for at in range(len(places)) if printed else ():
            # At a local minimum of a line, the number is put below the point, where the line does not cross it.
            is_valley = kind == "line" and values[at] <= min(values[max(0, at - 1) : at + 2])
            offset, side = ((0, -8), "top") if is_valley else ((0, 7), "bottom")
            axes.annotate(cells[at], (places[at], values[at]), offset, textcoords="offset points", ha="center", va=side)
    if kind == "barh":
        axes.set_yticks(places, names)
        axes.margins(x=0.14)
    else:
        crowded = sum(len(name) for name in names) > 34
        axes.set_xticks(
            places, names, rotation=rng.choice((40, 60)) if crowded else 0, ha="right" if crowded else "center"
        )
        axes.margins(y=0.14)


def _plain(text: str) -> str:
    """Return the text with "$" escaped, so that matplotlib does not parse it as a formula."""
    return text.replace("$", r"\$")


def _set_font(figure: Figure, face: fonts.Face, size: float) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text

    # matplotlib opens a collection (.ttc) at its first face, which has the right shapes of almost all characters.
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if face.path:
            text.set_fontproperties(FontProperties(fname=face.path))
        text.set_fontsize(size)
