"""Tables drawn as images in several styles: to Markdown or HTML, and questions with computed answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.data.record import BoxPx
from vl2.synth import fonts
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, line_height, text_width
from vl2.synth.paper import Colour
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.table_questions import Asked, ask_lookup, ask_number, ask_rows
from vl2.synth.tables import Table, choose_table, made_up, read_tables

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
HEADER_COLOURS = ((40, 70, 120), (70, 70, 70), (20, 100, 80), (130, 40, 40), (90, 60, 130))


@dataclass(frozen=True, kw_only=True)
class TableImage(Source):
    """Drawn tables. Two thirds are of the tables given (or built in), the others have made-up numbers."""

    name = "table_image"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "markdown", "html", "csv", "lookup", "max", "min", "compare", "difference", "count", "sum", "rows",
    )  # fmt: skip

    tables: str | None = None  # a folder of tables, see `read_tables`; None: the built-in ones
    font_folders: tuple[str, ...] | None = None
    max_rows: int = 12
    max_columns: int = 5
    max_distortions: int = 2

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.tables else super().own_licence()

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
        picture = distort(image, rng, rng.randint(0, self.max_distortions))
        draft = Draft(language=table.language, traits={"task": task, "style": style, "font": face.name})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        draft.ask(asked.question, asked.answer)
        return draft

    def _table(self, rng: random.Random, *, invent: bool) -> Table | None:
        languages = fonts.languages(self.font_folders)
        if invent:
            return made_up(rng, rng.choice(languages))
        tables = read_tables(self.tables)
        return choose_table(rng, tables, languages, max_rows=self.max_rows, max_columns=self.max_columns)


def _ask(table: Table, task: str, rng: random.Random) -> Asked | None:
    if task in ("markdown", "html", "csv"):
        answer = {"markdown": table.as_markdown, "html": table.as_html, "csv": table.as_csv}[task]()
        return Asked(kind=task, question=rng.choice(CONVERT[table.language][task]), answer=answer)
    if task == "lookup":
        return ask_lookup(table, rng)
    return ask_rows(table, rng) if task == "rows" else ask_number(table, rng, task)


Cells = list[list[BoxPx]]  # by row, the header first, then by column


def draw_table(table: Table, font: fonts.Font, style: str, rng: random.Random) -> tuple[Image.Image, Cells]:
    """Draw a table, columns as wide as their longest cell, numbers to the right; and return where its texts stand."""
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
    head, ink = rng.choice(HEADER_COLOURS), (25, 25, 25)
    _shade(page, (margin, top, sum(widths), row_px), len(table.rows), style, head)
    _rule(page, (margin, top, row_px), widths, len(table.rows), style)
    x = margin
    places: Cells = [[] for _ in range(len(table.rows) + 1)]
    for index, (cells, column_px) in enumerate(zip(columns, widths, strict=True)):
        right = index in table.numeric_columns
        for row, cell in enumerate(cells):
            colour: Colour = (255, 255, 255) if row == 0 and style in ("header", "zebra") else ink
            at = (x + column_px - pad if right else x + pad, top + row * row_px + row_px / 2)
            places[row].append(page.write(at, cell, font, colour, "rm" if right else "lm"))
        x += column_px
    return page.image, places


def _shade(page: Page, place: tuple[int, int, int, int], rows: int, style: str, head: Colour) -> None:
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
