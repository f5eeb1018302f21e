"""Small tables with several questions about each: look up, read all, most and least, count the rows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.synth import fonts, words
from vl2.synth.draft import Draft
from vl2.synth.page import letter_boxes
from vl2.synth.primer.bars import FRUIT, MONTHS
from vl2.synth.primer.writing import LEAST_PX, choose_face, choose_language
from vl2.synth.source import Dropped, Source
from vl2.synth.table_image import STYLES, Cells, draw_table
from vl2.synth.table_questions import Asked, ask_lookup, ask_number, ask_rows
from vl2.synth.tables import Table

LARGEST = (336, 168)  # px
HEADERS = {
    "en": ("Price", "Sold", "Age", "Score", "Total", "Size", "Code", "Day", "Room", "Year", "Tax", "Rank"),
    "zh": ("价格", "数量", "年龄", "得分", "合计", "大小", "编号", "日期", "房间", "年份"),
}
READ_ALL = {
    "en": ("Read the table row by row.", "Write down the whole table."),
    "zh": ("逐行读出表格。", "写出整个表格的内容。"),
}
KEYS = {"en": ("Name", "Item", "City"), "zh": ("名称", "项目", "城市")}


@dataclass(frozen=True, kw_only=True)
class PrimerTable(Source):
    """Tables of two to four rows and one to three columns of values."""

    name = "primer_table"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = ("lookup", "max", "min", "rows", "read")

    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    turns: int = 4

    def draft(self, rng: random.Random) -> Draft:
        language = choose_language(rng, self.languages, self.font_folders)
        table = make_table(rng, language)
        face = choose_face(rng, table.text + "0123456789", self.font_folders)
        style = rng.choice(STYLES)
        image, places, font = _draw(table, face, style, rng)
        draft = Draft(language=language, traits={"font": face.name, "style": style})
        draft.picture(image)
        asked = set[str]()
        for _ in range(rng.randint(1, self.turns)):
            task = self.pick_task(rng)
            if rng.random() < 0.5 and "lookup" in (self.tasks or self.tasks_known):
                task = "lookup"
            made = _ask(table, task, language, rng)
            if made and made.question not in asked:
                asked.add(made.question)
                shown = [draft.show(text, letter_boxes(font, text, places[r][c])) for text, (r, c) in made.cells]
                draft.ask(made.question, made.answer, shown)
        if not asked:
            raise Dropped("no question has one answer")
        return draft


def _ask(table: Table, task: str, language: str, rng: random.Random) -> Asked | None:
    """Return a question of a kind; None if it has no single answer."""
    if task == "lookup":
        return ask_lookup(table, rng) or ask_number(table, rng, "max")
    if task == "rows":
        return ask_rows(table, rng)
    if task == "read":
        rows = (table.header, *table.rows)
        cells = tuple((text, (r, c)) for r, row in enumerate(rows) for c, text in enumerate(row))
        answer = "\n".join(map(" ".join, rows))
        return Asked(kind="read", question=rng.choice(READ_ALL[language]), answer=answer, cells=cells)
    return ask_number(table, rng, task)


def _draw(table: Table, face: fonts.Face, style: str, rng: random.Random) -> tuple[Image.Image, Cells, fonts.Font]:
    """Draw a table at a size at which it fits, as large as was wished for if it can be."""
    for size_px in range(rng.randint(15, 20), LEAST_PX - 1, -2):
        font = fonts.load(face, size_px)
        image, places = draw_table(table, font, style, rng)
        if image.width <= LARGEST[0] and image.height <= LARGEST[1]:
            return image, places, font
    raise Dropped("the table is too large")


def make_table(rng: random.Random, language: str) -> Table:
    """Make up a table of two to four rows."""
    names = rng.choice((words.CITIES[language], FRUIT[language], MONTHS[language], words.COMMON[language]))
    picked = rng.sample([name for name in names if len(name) <= 9], rng.randint(2, 4))
    header = (rng.choice(KEYS[language]), *rng.sample(HEADERS[language], rng.randint(1, 3)))
    tops = [rng.choice((9, 99, 99, 999, 9999)) for _ in header[1:]]
    rows = tuple((name, *(str(rng.randint(1, top)) for top in tops)) for name in picked)
    return Table(title="", header=header, rows=rows)
