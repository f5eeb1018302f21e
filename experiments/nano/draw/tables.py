"""Tables of two to nine rows in the styles of print: with lines, with some, with none; words from open lists."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from PIL import Image

from experiments.nano.draw.answers import CANNOT_TELL
from experiments.nano.draw.base import Color, NanoSource, Written
from experiments.nano.draw.extremes import number_and_name, words_for
from experiments.nano.draw.frame import MOST_PX, is_wanted, scale_of
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.vocabulary import LETTERS, cased, names, word, words_of
from vl2.synth import fonts
from vl2.synth.draft import Draft
from vl2.synth.page import line_height, text_width
from vl2.synth.primer_lines import token
from vl2.synth.source import Dropped
from vl2.synth.words import date

LEAST_SEEN_PX = 9.5
LEAST_TURNS = 6  # of questions about a picture that is asked about several times
LONGEST = {"en": 15, "zh": 6}
RULES = ("none", "head", "rows", "columns", "grid", "grid", "frame", "boxes")
BOLD, UNDERLINED, CAPTION = 0.4, 0.1, 0.25  # shares of tables with a bold header, an underlined one, a caption
YES_NO = {"en": ("Yes", "No"), "zh": ("是", "否")}
MOST_CELLS = 45
ATTEMPTS = 200  # words tried for a header


@dataclass(frozen=True)
class Table:
    """The header, and rows whose first cells differ."""

    language: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...]  # columns
    caption: str = ""  # may stand above the table

    @property
    def text(self) -> str:
        return self.caption + "".join("".join(row) for row in (self.header, *self.rows))


@dataclass(frozen=True, kw_only=True)
class Tables(NanoSource):
    """Tasks "lookup", "reverse", "extreme", "rows", "unknown" and "read" (the whole table)."""

    name = "nano_tables"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = (
        *("lookup",) * 7,
        "reverse",
        "reverse",
        *("extreme",) * 3,
        "rows",
        "unknown",
        "read",
    )

    turns: int = 14

    def page(self, rng: random.Random) -> Written:
        table = make_table(rng, self.inputs, rng.choice(self.languages))
        return self._draw(rng, table)

    def _draw(self, rng: random.Random, table: Table) -> Written:
        face = self.face(rng, table.text)
        return draw_table(rng, table, face, self.bold(face, table.text))

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        table = make_table(rng, self.inputs, language)
        written = self._draw(rng, table)
        draft = Draft(language=language)
        written.picture(draft, rng)
        asked = set[str]()
        for _ in range(rng.randint(min(LEAST_TURNS, self.turns), self.turns)):
            task = self.pick_task(rng)
            made = ask(rng, table, task, self.inputs)
            once = task if task in ("rows", "read") else made[0] if made is not None else ""
            if made is not None and once not in asked:
                question, answer, cells = made
                asked.add(once)
                is_counted = task == "rows"
                shown = [written.show_whole(draft, "rows", cells)] if is_counted else written.show(draft, cells)
                draft.ask(question, answer, shown)
            if "read" in asked:
                break  # what is asked after it could be copied from its answer
        if not asked:
            raise Dropped("no question has one answer")
        return draft


def make_table(rng: random.Random, inputs: str, language: str) -> Table:
    """Make up a table."""
    num_columns = rng.randint(1, 4)
    num_rows = rng.randint(2, min(9, MOST_CELLS // (num_columns + 1)))
    keys = names(rng, inputs, language, num_rows, LONGEST[language])
    header = list[str]()
    for _ in range(ATTEMPTS):
        noun = rng.choice(words_of(inputs, language, "nouns"))
        one = cased(rng, noun) if language == "en" else noun
        if len(one) <= 11 and one not in header:
            header.append(one)
        if len(header) > num_columns:
            break
    else:
        raise Dropped("no words are as short as wished")
    columns = [_column(rng, inputs, language, len(keys)) for _ in range(num_columns)]
    rows = tuple((key, *(cells[n] for cells, _ in columns)) for n, key in enumerate(keys))
    numeric = tuple(1 + n for n, (_, is_numeric) in enumerate(columns) if is_numeric)
    if len(keys) < 2:
        raise Dropped("no names are as short as wished")
    caption = word(rng, inputs, language)
    return Table(language=language, header=tuple(header), rows=rows, numeric=numeric, caption=caption)


def _column(rng: random.Random, inputs: str, language: str, count: int) -> tuple[list[str], bool]:
    """Return the cells of a column, and whether they are numbers to be compared."""
    kind = rng.choice((*("numbers",) * 7, "words", "dates", "yes", "codes"))
    if kind == "numbers":
        return make_numbers(rng, count), True
    if kind == "words":
        pool = words_of(inputs, language, rng.choice(("nouns", "places")))
        return [
            cased(rng, _short(rng, pool, LONGEST[language])) if language == "en" else _short(rng, pool, 6)
            for _ in range(count)
        ], False
    if kind == "dates":
        return [date(rng, language) for _ in range(count)], False
    if kind == "yes":
        return [rng.choice(YES_NO[language]) for _ in range(count)], False
    return [
        token(rng) if rng.random() < 0.5 else f"{rng.choice(LETTERS)}{rng.randint(1, 99)}" for _ in range(count)
    ], False


def make_numbers(rng: random.Random, count: int) -> list[str]:
    """Make up numbers of one kind, as the cells of a column have them."""
    kind = rng.choice(("whole", "whole", "whole", "decimal", "money", "percent", "year"))
    top = 10 ** rng.randint(1, 5)
    if kind == "whole":
        comma = rng.choice(("", "", ","))
        return [f"{rng.randint(0, top):{comma}}" for _ in range(count)]
    if kind == "decimal":
        places = rng.randint(1, 2)
        return [f"{rng.uniform(0, min(top, 1000)):.{places}f}" for _ in range(count)]
    if kind == "money":
        sign = rng.choice(("$", "€", "£", ""))
        return [f"{sign}{rng.uniform(0, min(top, 1000)):.2f}" for _ in range(count)]
    if kind == "percent":
        return [f"{rng.randint(0, 100)}%" for _ in range(count)]
    return [str(rng.randint(1900, 2035)) for _ in range(count)]


def _short(rng: random.Random, pool: tuple[str, ...], longest: int) -> str:
    for _ in range(20):
        one = rng.choice(pool)
        if len(one) <= longest:
            return one
    raise Dropped("no word is as short as wished")


Cell = tuple[int, int]  # row, the header's first, and column
Asked = tuple[str, str, list[Cell]]


def ask(rng: random.Random, table: Table, task: str, inputs: str) -> Asked | None:
    """Return a question, its answer and the cells on which it rests; None if it has no single answer."""
    language, rows = table.language, table.rows
    row, column = rng.randrange(len(rows)), rng.randrange(1, len(table.header))
    head, value = table.header[column], rows[row][column]
    if task == "lookup":
        question = phrase("lookup", language, rng, column=head, row=rows[row][0])
        return question, value, [(row + 1, 0), (0, column), (row + 1, column)]
    if task == "reverse":
        if [cells[column] for cells in rows].count(value) > 1:
            return None
        question = phrase("reverse_lookup", language, rng, column=head, key=table.header[0], value=value)
        return question, rows[row][0], [(row + 1, column), (0, column), (row + 1, 0)]
    if task == "extreme":
        return _ask_extreme(rng, table)
    if task == "rows":
        return phrase("number_of_rows", language, rng), str(len(rows)), [(n + 1, 0) for n in range(len(rows))]
    if task == "unknown":
        other = word(rng, inputs, language)
        if other.casefold() in table.text.casefold():
            return None
        asked = {"column": other, "row": rows[row][0]} if rng.random() < 0.5 else {"column": head, "row": other}
        return phrase("lookup", language, rng, **asked), CANNOT_TELL[language], []
    cells = [(n, m) for n in range(len(rows) + 1) for m in range(len(table.header))]
    return phrase("read_table", language, rng), "\n".join(map(" ".join, (table.header, *rows))), cells


def _ask_extreme(rng: random.Random, table: Table) -> Asked | None:
    if not table.numeric:
        return None
    column = rng.choice(table.numeric)
    values = [number_of(cells[column]) for cells in table.rows]
    which = rng.randrange(2)
    wanted = (max, min)[which](values)
    if values.count(wanted) > 1:
        return None
    row, names = values.index(wanted), {"key": table.header[0], "column": table.header[column]}
    question = phrase("table_extreme", table.language, rng, **names, **words_for(which, table.language, rng))
    answer = number_and_name(table.rows[row][column], table.rows[row][0], table.language)
    return question, answer, [(0, column), (row + 1, column), (row + 1, 0)]


def number_of(cell: str) -> float:
    """Return the number that a cell shows."""
    return float("".join(char for char in cell if char.isdigit() or char in ".-"))


def draw_table(rng: random.Random, table: Table, face: fonts.Face, bold: fonts.Face) -> Written:
    """Draw a table so that it can be read, its header in bold now and then; texts are noted by row and column."""
    head = bold if rng.random() < BOLD else face
    for _ in range(12):
        px = rng.randint(10, 26)
        written = _draw(rng, table, fonts.load(face, px), fonts.load(head, px))
        size = written.page.image.size
        if max(size) <= MOST_PX and px * scale_of(size) >= LEAST_SEEN_PX and is_wanted(rng, size):
            return written
    raise Dropped("the table is too large to be read")


def _draw(rng: random.Random, table: Table, font: fonts.Font, head_font: fonts.Font) -> Written:
    em = float(font.size)
    pad, row_px = em * rng.uniform(0.3, 1.2), line_height(font) * rng.uniform(1.05, 1.8)
    margin, rules = round(em * rng.uniform(0.2, 2)), rng.choice(RULES)
    caption = table.caption if rng.random() < CAPTION else ""
    cells = (table.header, *table.rows)
    fonts_of = [head_font, *[font] * len(table.rows)]
    widths = [
        max(text_width(own, row[c]) for own, row in zip(fonts_of, cells, strict=True)) + 2 * pad
        for c in range(len(table.header))
    ]
    if rng.random() < 0.3:
        widths = [max(widths)] * len(widths)
    top = margin + (round(line_height(head_font) * 1.3) if caption else 0)
    across = max(sum(widths), text_width(head_font, caption))
    size = (round(across) + 2 * margin, round(row_px * len(cells)) + top + margin)
    if max(size) > MOST_PX:
        raise Dropped("the table is too large to be read")
    paper = rng.randint(238, 255)
    written = Written(Image.new("RGB", size, (paper, paper, paper)))
    head = rng.choice((None, None, _shade(rng, 200, 240), _shade(rng, 20, 110)))
    left = margin + (across - sum(widths)) / 2
    _decorate(rng, written, table, (left, top), widths, row_px, rules, head)
    ink, x = _shade(rng, 0, 60), left
    if caption:
        written.write("caption", (size[0] / 2, margin), caption, head_font, ink, "ma")
    aligned = [
        rng.choice("lm"),
        *(rng.choice("rrlm") if n in table.numeric else rng.choice("llm") for n in range(1, len(widths))),
    ]
    is_underlined = head is None and rng.random() < UNDERLINED
    for column, (width, side) in enumerate(zip(widths, aligned, strict=True)):
        at = {"l": x + pad, "m": x + width / 2, "r": x + width - pad}[side]
        for row, texts in enumerate(cells):
            color = (255, 255, 255) if row == 0 and head is not None and sum(head) < 400 else ink
            y = top + (row + 0.5) * row_px
            box = written.write((row, column), (at, y), texts[column], fonts_of[row], color, f"{side}m")
            if row == 0 and is_underlined:
                written.page.draw.line((box[0], box[3] + 2, box[2], box[3] + 2), fill=ink)
        x += width
    return written


def _shade(rng: random.Random, low: int, high: int) -> Color:
    level = rng.randint(low, high)
    return (level, level, level) if rng.random() < 0.5 else (rng.randint(low, high), rng.randint(low, high), level)


def _decorate(
    rng: random.Random,
    written: Written,
    table: Table,
    corner: tuple[float, float],
    widths: list[float],
    row_px: float,
    rules: str,
    head: Color | None,
) -> None:
    """Shade the header and every other row or each cell, and draw the lines."""
    (x, y), draw, rows = corner, written.page.draw, len(table.rows) + 1
    right, bottom = x + sum(widths), y + rows * row_px
    edges = [x + sum(widths[:n]) for n in range(len(widths) + 1)]
    if head is not None:
        draw.rectangle((x, y, right, y + row_px), fill=head)
    if rng.random() < 0.25:
        for row in range(2, rows, 2):
            draw.rectangle((x, y + row * row_px, right, y + (row + 1) * row_px), fill=(228, 232, 238))
    line, thick = _shade(rng, 30, 200), rng.choice((1, 1, 2))
    if rules in ("rows", "grid"):
        for row in range(rows + 1):
            draw.line((x, y + row * row_px, right, y + row * row_px), fill=line, width=thick)
    if rules in ("columns", "grid"):
        for at in edges:
            draw.line((at, y, at, bottom), fill=line, width=thick)
    if rules == "head":
        draw.line((x, y + row_px, right, y + row_px), fill=line, width=thick)
    if rules == "frame":
        draw.rectangle((x, y, right, bottom), outline=line, width=thick)
    if rules == "boxes":  # with room between them
        body, room = _shade(rng, 215, 250), rng.uniform(1, 3)
        for row in range(rows):
            for start, end in pairwise(edges):
                box = (start + room, y + row * row_px + room, end - room, y + (row + 1) * row_px - room)
                draw.rectangle(box, fill=head if row == 0 and head is not None else body)
