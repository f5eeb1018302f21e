"""Draw the primer's small bar charts and tables, and ask to read values, find extremes and count.

`vl2.synth.primer_lines` explains what the primer is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, ImageDraw

from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.chart import PALETTES, VALUE
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import letter_boxes
from vl2.synth.primer_lines import LEAST_PX, choose_face, choose_language
from vl2.synth.source import Dropped, Source
from vl2.synth.table_image import STYLES, Cells, draw_table
from vl2.synth.table_questions import Asked, ask_lookup, ask_number, ask_rows
from vl2.synth.tables import Table

MONTHS = {
    "en": ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    "zh": ("一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月"),
}
FRUIT = {
    "en": ("Apple", "Pear", "Plum", "Fig", "Lemon", "Grape", "Peach", "Cherry", "Melon", "Kiwi", "Mango", "Lime"),
    "zh": ("苹果", "香蕉", "葡萄", "西瓜", "桃子", "橙子", "草莓", "梨", "芒果"),
}
YEARS = tuple(str(year) for year in range(1995, 2030))
TITLES = {
    "en": ("Sales", "Visitors", "Rain", "Energy", "Points", "Weight", "Speed", "Orders", "Price", "Hours", "Goals"),
    "zh": ("销量", "人数", "雨量", "用电", "得分", "重量", "速度", "订单", "价格", "时间"),
}
HIGHEST = {
    "en": ("Which bar is the highest?", "Which one has the largest value?", "Where is the value highest?"),
    "zh": ("哪一项最高？", "数值最大的是哪一个？"),
}
LOWEST = {
    "en": ("Which bar is the lowest?", "Which one has the smallest value?", "Where is the value lowest?"),
    "zh": ("哪一项最低？", "数值最小的是哪一个？"),
}
NUMBER = {
    "en": ("How many bars are there?", "How many bars does the chart have?"),
    "zh": ("图中有几个柱子？", "一共有多少项？"),
}
TITLE = {
    "en": ("What is the title of the chart?", "What does the chart show?"),
    "zh": ("图表的标题是什么？", "这张图表示什么？"),
}
READ_BARS = {
    "en": ("List all bars with their values.", "Write down every bar and its value."),
    "zh": ("列出所有柱子及其数值。", "写出每一项和它的数值。"),
}
GAP = 0.3  # gap between bars, as a fraction of the room of a bar
Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """The content of a bar chart."""

    title: str
    names: tuple[str, ...]
    values: tuple[str, ...]  # as printed

    @property
    def numbers(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class PrimerBars(Source):
    """Bar charts of three to five vertical or horizontal bars."""

    name = "primer_bars"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = ("value", "highest", "lowest", "number", "title", "read")

    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    turns: int = 4
    max_distortions: int = 0

    def draft(self, rng: random.Random) -> Draft:
        language = choose_language(rng, self.languages, self.font_folders)
        bars = make_bars(rng, language)
        face = choose_face(rng, bars.title + "".join(bars.names) + "0123456789.", self.font_folders)
        image, places = draw_bars(bars, face, rng)
        picture = distort(image, rng, rng.randint(0, self.max_distortions))
        draft = Draft(language=language, traits={"font": face.name, "bars": str(len(bars.names))})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        values = list(range(len(bars.names)))
        rng.shuffle(values)
        asked = set[str]()
        for _ in range(rng.randint(1, self.turns)):
            task = self.pick_task(rng)
            if task != "value" and (task in asked or rng.random() < 0.4):
                task = "value" if "value" in (self.tasks or self.tasks_known) else task
            asked.add(task)
            if task == "value" and not values:
                break
            question, answer, seen = _ask_bars(bars, task, language, values, rng)
            shown = [draft.show(text, [picture.move(box) for box in places[text]]) for text in seen]
            if task == "read":  # the title's letters are added too, for training on the positions of letters
                draft.show(bars.title, [picture.move(box) for box in places[bars.title]])
            draft.ask(question, answer, shown)
        return draft


def make_bars(rng: random.Random, language: str) -> Bars:
    """Return the random content of a small bar chart."""
    pool = rng.choice((MONTHS[language], FRUIT[language], words.CITIES[language], YEARS, words.COMMON[language]))
    short = [name for name in pool if len(name) <= 9]
    names = rng.sample(short, rng.randint(3, 5))
    if pool in (MONTHS[language], YEARS):
        names.sort(key=pool.index)
    top = rng.choice((10, 30, 100, 100, 1000))
    decimals = top <= 30 and rng.random() < 0.3
    values = rng.sample(range(max(1, top // 12), top * (10 if decimals else 1)), len(names))
    printed = tuple(f"{value / 10:.1f}" if decimals else str(value) for value in values)
    return Bars(title=rng.choice(TITLES[language]), names=tuple(names), values=printed)


def _ask_bars(
    bars: Bars, task: str, language: str, values: list[int], rng: random.Random
) -> tuple[str, str, list[str]]:
    """Return a question, its answer, and the texts of the chart that support the answer.

    For the task "value", the index of the bar is removed from the end of `values`.
    """
    if task == "value":
        at = values.pop()
        return (
            rng.choice(VALUE[language]).format(column=bars.title, row=bars.names[at]),
            bars.values[at],
            [bars.names[at], bars.values[at]],
        )
    if task == "number":
        return rng.choice(NUMBER[language]), str(len(bars.names)), []
    if task == "title":
        return rng.choice(TITLE[language]), bars.title, [bars.title]
    if task == "read":
        pairs = list(zip(bars.names, bars.values, strict=True))
        return (
            rng.choice(READ_BARS[language]),
            "\n".join(map(" ".join, pairs)),
            [text for pair in pairs for text in pair],
        )
    at = bars.numbers.index(max(bars.numbers) if task == "highest" else min(bars.numbers))
    return rng.choice((HIGHEST if task == "highest" else LOWEST)[language]), bars.names[at], [bars.names[at]]


Places = dict[str, list[BoxPx]]  # boxes of the letters of each text in the chart


def draw_bars(bars: Bars, face: fonts.Face, rng: random.Random) -> tuple[Image.Image, Places]:
    """Return an image of a chart, at most 336 x 168 px, and the boxes of its texts."""
    level = rng.randint(240, 255)
    size = (rng.randrange(240, 337, 8), rng.randrange(150, 169))
    image = Image.new("RGB", size, (level, level, level))
    palette = [_rgb(code) for code in rng.choice(PALETTES)]
    rng.shuffle(palette)
    colors = palette[: len(bars.names)] if rng.random() < 0.4 else palette[:1] * len(bars.names)
    font = fonts.load(face, rng.randint(14, 19))
    draw = ImageDraw.Draw(image)
    title = _write(draw, (size[0] / 2, 2), bars.title, font, "ma", size)
    paint = _upright if rng.random() < 0.6 else _lying
    return image, paint(draw, bars, font, colors, size) | {bars.title: title}


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: fonts.Font, anchor: str, size: tuple[int, int]
) -> list[BoxPx]:
    """Write a text, and return the boxes of its letters, clipped to the image."""
    draw.text(at, text, (20, 20, 20), font, anchor)
    x0, y0, x1, y1 = draw.textbbox(at, text, font, anchor)
    return letter_boxes(font, text, (max(0, x0), max(0, y0), min(size[0], x1), min(size[1], y1)))


def _upright(
    draw: ImageDraw.ImageDraw, bars: Bars, font: fonts.Font, colors: list[Color], size: tuple[int, int]
) -> Places:
    line = sum(font.getmetrics())
    left, right, top, bottom = 10, size[0] - 10, 2 * line + 4, size[1] - line - 6
    room = (right - left) / len(bars.names)
    if max(font.getlength(name) for name in (*bars.names, *bars.values)) > room - 2:
        font = font.font_variant(size=max(11, int(font.size * 0.8)))
        if max(font.getlength(name) for name in (*bars.names, *bars.values)) > room:
            raise Dropped("the names are too long for the chart")
    places: Places = {}
    for n, (name, value, number) in enumerate(zip(bars.names, bars.values, bars.numbers, strict=True)):
        x0, x1 = left + (n + GAP / 2) * room, left + (n + 1 - GAP / 2) * room
        y = bottom - (bottom - top) * number / max(bars.numbers)
        draw.rectangle((x0, y, x1, bottom), fill=colors[n])
        places[value] = _write(draw, ((x0 + x1) / 2, y - 1), value, font, "md", size)
        places[name] = _write(draw, ((x0 + x1) / 2, bottom + 2), name, font, "ma", size)
    draw.line((left, bottom, right, bottom), fill=(90, 90, 90))
    return places


def _lying(
    draw: ImageDraw.ImageDraw, bars: Bars, font: fonts.Font, colors: list[Color], size: tuple[int, int]
) -> Places:
    line = sum(font.getmetrics())
    top, bottom = line + 4, size[1] - 6
    room = (bottom - top) / len(bars.names)
    if room < line * 0.9:
        font = font.font_variant(size=max(11, int(font.size * room / line)))
    left = 8 + max(font.getlength(name) for name in bars.names)
    right = size[0] - 10 - max(font.getlength(value) for value in bars.values)
    if right - left < 50:
        raise Dropped("the names are too long for the chart")
    places: Places = {}
    for n, (name, value, number) in enumerate(zip(bars.names, bars.values, bars.numbers, strict=True)):
        y0, y1 = top + (n + GAP / 2) * room, top + (n + 1 - GAP / 2) * room
        x = left + (right - left) * number / max(bars.numbers)
        draw.rectangle((left, y0, x, y1), fill=colors[n])
        places[value] = _write(draw, (x + 4, (y0 + y1) / 2), value, font, "lm", size)
        places[name] = _write(draw, (left - 4, (y0 + y1) / 2), name, font, "rm", size)
    draw.line((left, top, left, bottom), fill=(90, 90, 90))
    return places


def _rgb(code: str) -> Color:
    return (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16))


LARGEST = (336, 168)  # greatest width and height of a table in pixels
HEADERS = {
    "en": ("Price", "Sold", "Age", "Score", "Total", "Size", "Code", "Day", "Room", "Year", "Tax", "Rank"),
    "zh": ("价格", "数量", "年龄", "得分", "合计", "大小", "编号", "日期", "房间", "年份"),
}
READ_TABLE = {
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
            made = _ask_table(table, task, language, rng)
            if made and made.question not in asked:
                asked.add(made.question)
                shown = [draft.show(text, letter_boxes(font, text, places[r][c])) for text, (r, c) in made.cells]
                draft.ask(made.question, made.answer, shown)
        if not asked:
            raise Dropped("no question has one answer")
        return draft


def _ask_table(table: Table, task: str, language: str, rng: random.Random) -> Asked | None:
    """Return a question for a task, or None if it has no single right answer."""
    if task == "lookup":
        return ask_lookup(table, rng) or ask_number(table, rng, "max")
    if task == "rows":
        return ask_rows(table, rng)
    if task == "read":
        rows = (table.header, *table.rows)
        cells = tuple((text, (r, c)) for r, row in enumerate(rows) for c, text in enumerate(row))
        answer = "\n".join(map(" ".join, rows))
        return Asked(kind="read", question=rng.choice(READ_TABLE[language]), answer=answer, cells=cells)
    return ask_number(table, rng, task)


def _draw(table: Table, face: fonts.Face, style: str, rng: random.Random) -> tuple[Image.Image, Cells, fonts.Font]:
    """Draw a table at a random font size, or at a smaller one if needed to fit LARGEST.

    Return the image, the boxes of the cells and the font. Raise Dropped if the table does not fit at any size.
    """
    for size_px in range(rng.randint(15, 20), LEAST_PX - 1, -2):
        font = fonts.load(face, size_px)
        image, places = draw_table(table, font, style, rng)
        if image.width <= LARGEST[0] and image.height <= LARGEST[1]:
            return image, places, font
    raise Dropped("the table is too large")


def make_table(rng: random.Random, language: str) -> Table:
    """Return a random table of two to four rows."""
    names = rng.choice((words.CITIES[language], FRUIT[language], MONTHS[language], words.COMMON[language]))
    picked = rng.sample([name for name in names if len(name) <= 9], rng.randint(2, 4))
    header = (rng.choice(KEYS[language]), *rng.sample(HEADERS[language], rng.randint(1, 3)))
    tops = [rng.choice((9, 99, 99, 999, 9999)) for _ in header[1:]]
    rows = tuple((name, *(str(rng.randint(1, top)) for top in tops)) for name in picked)
    return Table(title="", header=header, rows=rows)
