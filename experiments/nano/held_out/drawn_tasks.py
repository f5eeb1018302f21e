"""The held-out tasks whose pictures are drawn: lines, scenes, charts, tables, emoji."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from random import Random

from PIL import Image

from experiments.nano.held_out import charts, fonts, lines, phrasings, scenes, tables
from experiments.nano.held_out.draw_charts import draw as draw_chart
from experiments.nano.held_out.items import (
    CHINESE_SHARE,
    Redraw,
    drawn_task,
    phrase,
    png,
    protocol,
    rng_of,
)
from experiments.nano.held_out.scoring import (
    score_count,
    score_lines,
    score_name,
    score_near_number,
    score_number,
    score_one_of,
)
from vl2.errors import UserError
from vl2.eval.protocols import score_exact, score_first_box, score_yes_no
from vl2.eval.task import DataSource, Item, Score, Task, mean_score
from vl2.infer.prompts import locate_prompt

TABLES_AT_ONCE = 24
EMOJI_PX = (97, 131, 203, 259)  # the side of the picture
EMOJI_PAPERS = ("#ffffff", "#f2f5f9", "#fdf6e3", "#e8f0e4")
NOT_ASKED = ("flags", "symbols", "component")  # groups: signs and kinds of hair have names that nobody would say
# The same picture as of a person, told apart by hair alone, and clocks.
NOT_NAMED = re.compile(r"^(man|woman|men|women) | (man|woman)$|:|clock$|-thirty")


def kept_fonts(source: DataSource) -> fonts.Fonts:
    if source.data is None:
        raise UserError("the held-out tasks need the folder of their fonts")
    return fonts.fonts_in(source.data / "fonts")


Picture = Callable[[Random, fonts.Fonts], tuple[Image.Image, str]]


def _line_task(name: str, title: str, picture: Picture, language: str) -> Task:
    def draw(rng: Random, id: str, source: DataSource) -> Item:
        image, text = picture(rng, kept_fonts(source))
        question = phrase(rng, phrasings.COPY_LINE, language)
        part = "" if language == "zh" else "plain words" if lines.is_plain(text) else "a name or sign"
        return Item(id=id, question=question, images=(png(image),), gold=[text], part=part)

    return drawn_task(name, title, draw, score_exact, "Exact without case.", max_new_tokens=96)


def _draw_several(rng: Random, id: str, source: DataSource) -> Item:
    image, texts = lines.several_picture(rng, kept_fonts(source))
    question = phrase(rng, phrasings.COPY_LINES, "en")
    return Item(id=id, question=question, images=(png(image),), gold=list(texts), part=f"{len(texts)} lines")


def _language(rng: Random) -> str:
    return "zh" if rng.random() < CHINESE_SHARE else "en"


def _draw_locate(rng: Random, id: str, source: DataSource) -> Item:
    scene, number = scenes.scene_to_locate(rng)
    thing, language = scene.things[number], _language(rng)
    return Item(
        id=id,
        question=locate_prompt(thing.name(language)),
        images=(png(scene.image),),
        gold=[list(scene.boxes[number])],
        part=thing.style,
        notes={"size": list(scene.image.size)},
    )


def _draw_count(rng: Random, id: str, source: DataSource) -> Item:
    number, language = rng.randint(1, 9), _language(rng)
    if rng.random() < 0.2:
        scene = scenes.scene_of(rng, number)
        question = phrase(rng, phrasings.COUNT_ALL, language)
        return Item(id=id, question=question, images=(png(scene.image),), gold=number, part="all shapes")
    scene, (shape, color) = scenes.scene_to_count(rng, number)
    noun = scenes.full_name(shape, color, language)
    noun = noun if language == "zh" else noun + ("es" if noun.endswith("s") else "s")
    measure = scenes.MEASURES_ZH.get(shape, "个")
    question = phrase(rng, phrasings.COUNT, language, noun=noun, measure=measure)
    part = "1 to 3" if number < 4 else "4 to 6" if number < 7 else "7 to 9"
    return Item(id=id, question=question, images=(png(scene.image),), gold=number, part=part)


def _draw_presence(rng: Random, id: str, source: DataSource) -> Item:
    scene, language = scenes.scene_of(rng, rng.randint(2, 8)), _language(rng)
    is_there = rng.random() < 0.5
    name = scenes.full_name(*scenes.kind_for_presence(rng, scene, is_there), language)
    a_name = f"an {name}" if name[0] in "aeiou" else f"a {name}"
    question = phrase(rng, phrasings.PRESENCE, language, name=name, a_name=a_name)
    gold = "yes" if is_there else "no"
    return Item(id=id, question=question, images=(png(scene.image),), gold=gold, part=gold)


def _chart_draw(*, is_printed: bool) -> Callable[[Random, str, DataSource], Item]:
    def draw(rng: Random, id: str, source: DataSource) -> Item:
        kept, language = kept_fonts(source), "zh" if rng.random() < 0.15 else "en"
        chart = charts.make_chart(rng, kept.zh if language == "zh" else kept.en, language, is_printed=is_printed)
        if language == "zh" and (chart.library == "altair" or len(chart.series) > 1):
            raise Redraw("Chinese charts are drawn by matplotlib, and their questions know one series")
        image = draw_chart(chart)
        question, gold, names = _ask_chart(rng, chart, language)
        part = charts.band(chart.size) if is_printed else "lines" if chart.kind == "line" else "bars"
        notes = {"names": names, "kind": chart.kind, "library": chart.library}
        return Item(id=id, question=question, images=(png(image),), gold=gold, part=part, notes=notes)

    return draw


def _ask_chart(rng: Random, chart: charts.Chart, language: str) -> tuple[str, str, list[str]]:
    """Return a question, its answer and, if the answer is a name, the names that there are."""
    s, n = rng.randrange(len(chart.series)), rng.randrange(len(chart.names))
    if len(chart.series) > 1:
        words = {"series": chart.series[s], "name": chart.names[n]}
        return phrase(rng, phrasings.CHART_GROUPED, language, **words), chart.values[s][n], []
    if rng.random() < 0.8:
        return phrase(rng, phrasings.CHART_VALUE, language, name=chart.names[n]), chart.values[0][n], []
    row, is_top = chart.numbers[0], rng.random() < 0.5
    at = row.index(max(row) if is_top else min(row))
    question = phrase(rng, phrasings.CHART_TOP if is_top else phrasings.CHART_BOTTOM, language)
    return question, chart.names[at], list(chart.names)


def _score_chart(of_number: Callable[[Item, str], Score]) -> Callable[[Item, str], Score]:
    return lambda item, answer: (score_one_of if item.notes["names"] else of_number)(item, answer)


def _read_tables(task: Task, source: DataSource) -> Iterator[Item]:
    kept = kept_fonts(source)
    for batch in count():
        numbers = range(batch * TABLES_AT_ONCE, (batch + 1) * TABLES_AT_ONCE)
        made = []
        for number in numbers:
            rng = rng_of(task.name, number)
            language = _language(rng)
            made.append((rng, language, tables.make_table(rng, kept.zh if language == "zh" else kept.en, language)))
        images = tables.draw_tables([table for *_, table in made])
        for number, (rng, language, table), image in zip(numbers, made, images, strict=True):
            question, gold, names = _ask_table(rng, table, language)
            yield Item(
                id=f"{task.name}-{number:05d}",
                question=question,
                images=(png(image),),
                gold=gold,
                part=table.style,
                notes={"names": names},
            )


def _ask_table(rng: Random, table: tables.Table, language: str) -> tuple[str, str, list[str]]:
    column = rng.randrange(1, len(table.header))
    if rng.random() < 0.2:
        best = max(table.rows, key=lambda row: float(row[column]))
        question = phrase(rng, phrasings.TABLE_TOP, language, column=table.header[column])
        return question, best[0], [row[0] for row in table.rows]
    row = rng.choice(table.rows)
    return phrase(rng, phrasings.TABLE_CELL, language, row=row[0], column=table.header[column]), row[column], []


TABLES = Task(
    name="tables",
    title="A cell of a table set by a browser, in words never seen, or which row has the most",
    layout="is drawn",
    read=_read_tables,
    protocols={"vl2": protocol(_score_chart(score_number), "The one number or name that is said.", 32)},
    metric=mean_score,
    is_mean=True,
    count=400,
)


@cache
def _emoji(folder: Path) -> tuple[tuple[str, str, Path], ...]:
    """Return (English name, Chinese name, file) of the emoji that have a name of their own."""
    found = json.loads((folder / "sprites.json").read_text(encoding="utf-8"))["sprites"]
    return tuple(
        (row["en"], row["zh"], folder / row["file"])
        for row in found
        if row["group"] not in NOT_ASKED and not NOT_NAMED.search(row["en"]) and len(row["en"]) <= 22
    )


def _emoji_task(language: str) -> Task:
    def draw(rng: Random, id: str, source: DataSource) -> Item:
        if source.data is None or not (source.data / "openmoji").is_dir():
            raise UserError("the emoji of OpenMoji are missing: python -m experiments.nano.held_out fetches them")
        en, zh, file = rng.choice(_emoji(source.data / "openmoji"))
        side = rng.choice(EMOJI_PX)
        image = Image.new("RGB", (side, side), rng.choice(EMOJI_PAPERS))
        part = round(side * rng.uniform(0.7, 0.95))
        with Image.open(file) as opened:
            sprite = opened.convert("RGBA").resize((part, part), Image.Resampling.LANCZOS)
        place = (rng.randint(0, side - part), rng.randint(0, side - part))
        image.paste(sprite, place, sprite)
        question = phrase(rng, phrasings.NAME, language)
        return Item(id=id, question=question, images=(png(image),), gold=[zh if language == "zh" else en])

    title = f"Name an emoji of a style never seen (OpenMoji) in {'Chinese' if language == 'zh' else 'English'}"
    return drawn_task(f"emoji_{language}", title, draw, score_name, "The name, or a sentence that says just it.")


TASKS = (
    _line_task("lines_en_short", "A line of English of up to 24 letters", lines.short_picture, "en"),
    _line_task("lines_en_long", "A line of English of 25 to 60 letters", lines.long_picture, "en"),
    drawn_task("lines_en_several", "Two to four lines of English", _draw_several, score_lines,
               "Share of lines that are right, in order.", max_new_tokens=160),
    _line_task("lines_zh", "A line of Chinese", lines.chinese_picture, "zh"),
    drawn_task("locate", "Locate the one shape of a name and color", _draw_locate, score_first_box,
               "The first box must have IoU 0.5.", max_new_tokens=96),
    drawn_task("count", "Count shapes, one to nine", _draw_count, score_count, "The one number that is said."),
    drawn_task("presence", "Is there such a shape", _draw_presence, score_yes_no, "The first word says yes or no."),
    drawn_task("chart_printed", "Read a chart with printed values, 200 x 150 to 640 x 480 px",
               _chart_draw(is_printed=True), _score_chart(score_number), "The one number or name that is said."),
    drawn_task("chart_unprinted", "Read a chart without printed values off its axis", _chart_draw(is_printed=False),
               _score_chart(score_near_number), "Within 5 % of the value, or the one name."),
    TABLES,
    _emoji_task("en"),
    _emoji_task("zh"),
)  # fmt: skip
