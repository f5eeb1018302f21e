"""Draw tables as images, and ask for Markdown, HTML or CSV, or questions with computed answers.

The source `TableImage` chooses parts of tables with short cells, and draws each row as one line. `draw_cells` is for a
table that comes with its own question: it draws the complete table, breaks long cells into lines, and raises UserError
if the table is too large.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.draft import Draft, store
from vl2.synth.page import Color, Page, line_height, text_width, wrap
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.table_questions import Asked, ask_lookup, ask_number, ask_rows
from vl2.synth.tables import Table, choose_table, made_up, tables_in

STYLES = ("grid", "zebra", "header", "rules", "open")
CONVERT = {
    "en": {
        "markdown": ("Convert the table to Markdown.", "Write this table as Markdown."),
        "html": ("Convert the table to HTML.", "Give the HTML code of this table."),
        "csv": ("Convert the table to CSV.", "Extract this table as comma-separated values."),
    },
    "zh": {
        "markdown": ("把表格转换成Markdown。", "用Markdown写出这张表。"),
        "html": ("把表格转换成HTML。", "请给出这张表的HTML代码。"),
        "csv": ("把表格转换成CSV。", "用逗号分隔的格式提取表格。"),
    },
}
ATTEMPTS = 60
HEADER_COLORS = ((40, 70, 120), (70, 70, 70), (20, 100, 80), (130, 40, 40), (90, 60, 130))


@dataclass(frozen=True, kw_only=True)
class TableImage(Source):
    """Images of tables. Two thirds come from the given (or built-in) tables; the others have random numbers."""

    name = "table_image"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "markdown", "html", "csv", "lookup", "max", "min", "compare", "difference", "count", "sum", "rows",
    )  # fmt: skip

    tables: str | None = None  # folder of tables, see `read_tables`; None uses the built-in tables
    font_folders: tuple[str, ...] | None = None
    max_rows: int = 12
    max_columns: int = 5
    max_distortions: int = 2
    photographed: float = 0.15

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.tables else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        return () if self.tables else ("tables",)

    def draft(self, rng: random.Random) -> Draft:
        task = self.pick_task(rng)
        invent = rng.random() < 1 / 3
        for _ in range(ATTEMPTS):
            table = self._table(rng, invent=invent)
            asked = _ask(table, task, rng) if table else None
            face = fonts.choose_face(rng, table.text, self.font_folders) if table else None
            if table and asked and face:
                break
        else:
            raise Dropped("no table fits the task")
        style = rng.choice(STYLES)
        image, _ = draw_table(table, fonts.load(face, rng.randint(13, 20)), style, rng)
        picture = take_picture(image, rng, max_distortions=self.max_distortions, photographed=self.photographed)
        draft = Draft(language=table.language, traits={"task": task, "style": style, "font": face.name})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        draft.ask(asked.question, asked.answer)
        return draft

    def _table(self, rng: random.Random, *, invent: bool) -> Table | None:
        languages = fonts.languages(self.font_folders)
        if invent and not self.tables:
            return made_up(rng, rng.choice(languages))
        tables = tables_in(self.tables, languages)
        table = choose_table(rng, tables, max_rows=self.max_rows, max_columns=self.max_columns)
        # The numbers of an invented table are random, but its rows have the names of a real one.
        return made_up(rng, table.language, table.column(0)) if invent and table else table


def _ask(table: Table, task: str, rng: random.Random) -> Asked | None:
    if task in ("markdown", "html", "csv"):
        answer = {"markdown": table.as_markdown, "html": table.as_html, "csv": table.as_csv}[task]()
        return Asked(kind=task, question=rng.choice(CONVERT[table.language][task]), answer=answer)
    if task == "lookup":
        return ask_lookup(table, rng)
    return ask_rows(table, rng) if task == "rows" else ask_number(table, rng, task)


Cells = list[list[BoxPx]]  # box of each cell's text, by row (the header first) and column


def draw_table(table: Table, font: fonts.Font, style: str, rng: random.Random) -> tuple[Image.Image, Cells]:
    """Return an image of a table and the boxes of its texts. Columns of numbers are aligned to the right."""
    pad, margin = rng.randint(6, 14), rng.randint(8, 30)
    row_px = round(line_height(font) * rng.uniform(1.25, 1.7))
    columns = [[table.header[c], *table.column(c)] for c in range(len(table.header))]
    widths = [max(text_width(font, cell) for cell in cells) + 2 * pad for cells in columns]
    titled = bool(table.title) and rng.random() < 0.4
    width = max(sum(widths), text_width(font, table.title) if titled else 0) + 2 * margin
    top = margin + (row_px if titled else 0)
    height = top + row_px * (len(table.rows) + 1) + margin
    level = rng.randint(244, 255)
    page = Page(Image.new("RGB", (width, height), (level, level, level)))
    if titled:
        page.write((margin, margin), table.title, font, (20, 20, 20))
    head, ink = rng.choice(HEADER_COLORS), (25, 25, 25)
    _shade(page, (margin, top, sum(widths), row_px), len(table.rows), style, head)
    _rule(page, (margin, top, row_px), widths, len(table.rows), style)
    x = margin
    places: Cells = [[] for _ in range(len(table.rows) + 1)]
    for index, (cells, column_px) in enumerate(zip(columns, widths, strict=True)):
        right = index in table.numeric_columns
        for row, cell in enumerate(cells):
            color: Color = (255, 255, 255) if row == 0 and style in ("header", "zebra") else ink
            at = (x + column_px - pad if right else x + pad, top + row * row_px + row_px / 2)
            places[row].append(page.write(at, cell, font, color, "rm" if right else "lm"))
        x += column_px
    return page.image, places


def _shade(page: Page, place: tuple[int, int, int, int], rows: int, style: str, head: Color) -> None:
    x, y, width, row_px = place
    if style in ("header", "zebra"):
        page.draw.rectangle((x, y, x + width, y + row_px), fill=head)
    if style == "zebra":
        for row in range(2, rows + 1, 2):
            page.draw.rectangle((x, y + row * row_px, x + width, y + (row + 1) * row_px), fill=(225, 230, 236))


def _rule(page: Page, corner: tuple[int, int, int], widths: list[int], rows: int, style: str) -> None:
    x, y, row_px = corner
    right, bottom, grey = x + sum(widths), y + (rows + 1) * row_px, (120, 120, 120)
    if style in ("grid", "header"):
        for at in [x + sum(widths[:n]) for n in range(len(widths) + 1)]:
            page.draw.line((at, y, at, bottom), fill=grey)
    lines = {"grid": range(rows + 2), "header": (0, 1, rows + 1), "rules": (0, 1, rows + 1), "open": (1,), "zebra": ()}
    for row in lines[style]:
        page.draw.line((x, y + row * row_px, right, y + row * row_px), fill=grey)


MAX_CELL_PX = 190  # wider cells are broken into lines, but not within a word
MAX_WIDTH_PX, MAX_HEIGHT_PX = 1600, 1800
CELL_STYLES = ("grid", "zebra", "rules")

_PAD = 6
_INK, _LINE, _SHADE, _HEAD = (25, 25, 25), (150, 150, 150), (236, 240, 245), (216, 224, 234)


def draw_cells(table: Sequence[Sequence[str]]) -> bytes:
    """Draw rows of cells, the header first, and return the image as PNG. The same table always looks the same.

    Raise UserError if the table is empty or too large to read in one image, or if no font of this machine covers it.
    """
    text = "\n".join("\t".join(row) for row in table)
    if not text.strip():
        raise UserError("the table is empty")
    rng = random.Random(text)
    face = fonts.choose_face(rng, "".join(text.split()))
    if face is None:
        raise UserError("no font of this machine covers the table")
    font, style = fonts.load(face, rng.randint(13, 16)), rng.choice(CELL_STYLES)
    rows = [[_lines(cell, font) for cell in row] for row in table]
    num_columns = max(map(len, rows))
    rows = [row + [[]] * (num_columns - len(row)) for row in rows]
    widths = [_width([row[at] for row in rows], font) for at in range(num_columns)]
    step = round(line_height(font) * 1.15)
    heights = [step * max(1, *map(len, row)) + 2 * _PAD for row in rows]
    size = (sum(widths) + 2 * _PAD, sum(heights) + 2 * _PAD)
    if size[0] > MAX_WIDTH_PX or size[1] > MAX_HEIGHT_PX:
        limit = f"{MAX_WIDTH_PX} x {MAX_HEIGHT_PX}"
        raise UserError(f"the table is too large to draw: {size[0]} x {size[1]} px, {limit} are allowed")
    page = Page(Image.new("RGB", size, "white"))
    top = _PAD
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        _draw_row(page, row, (top, height, step), widths, font, style, number)
        top += height
    data = store(page.image).data
    assert data is not None
    return data


def _lines(cell: str, font: fonts.Font) -> list[str]:
    language = "zh" if any("一" <= char <= "鿿" for char in cell) else "en"
    return [line for part in cell.split("\n") for line in wrap(" ".join(part.split()), font, MAX_CELL_PX, language)]


def _width(cells: Sequence[Sequence[str]], font: fonts.Font) -> int:
    return max((text_width(font, line) for lines in cells for line in lines), default=0) + 2 * _PAD


def _draw_row(
    page: Page,
    row: Sequence[Sequence[str]],
    place: tuple[int, int, int],
    widths: Sequence[int],
    font: fonts.Font,
    style: str,
    number: int,
) -> None:
    """Draw one row. `place` is (top, height, step between lines) in pixels, and row number 0 is the header."""
    top, height, step = place
    right = _PAD + sum(widths)
    if number == 0 or (style == "zebra" and number % 2 == 0):
        page.draw.rectangle((_PAD, top, right, top + height), fill=_SHADE if number else _HEAD)
    x = _PAD
    for lines, width in zip(row, widths, strict=True):
        if style == "grid":
            page.draw.rectangle((x, top, x + width, top + height), outline=_LINE)
        for at, line in enumerate(lines):
            page.write((x + _PAD, top + _PAD + at * step), line, font, _INK)
        x += width
    if style == "rules":
        page.draw.line((_PAD, top + height, right, top + height), fill=_LINE)
