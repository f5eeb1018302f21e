"""What pictures show, told in words, with the same questions: a table, a chart, a scene, lines to repeat.

Such a text costs about a tenth of a picture, and answering it takes what answering about a picture takes: to find the
name that was asked for among several, and to repeat what stands beside it. A language model that has learned it from
text has only to learn that the pictures tell the same.

Lists of numbers are to be sorted, or asked for their largest. A table of hundreds of tokens asks once or twice which
row has the most; such a list takes ten tokens to ask the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from experiments.nano.draw.charts import ask_extreme, make_chart
from experiments.nano.draw.extremes import number_and_name, words_for
from experiments.nano.draw.fields import AFTER_NAME, BETWEEN
from experiments.nano.draw.lines import Lines
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.scenes import YES_NO
from experiments.nano.draw.tables import ask, make_numbers, make_table, number_of
from experiments.nano.draw.vocabulary import names
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.primer_lines import token
from vl2.synth.source import Dropped
from vl2.synth.sprites import built_in_kinds

Asked = tuple[str, str]  # a question and its answer
SEPARATOR = {"en": ", ", "zh": "、"}
NUM_NUMBERS = (2, 2, 2, 3, 3, 4, 5, 6, 7, 8)  # numbers in a list to be sorted
MOST_EXTREMES = 4  # of questions for the most and the least about a chart


@dataclass(frozen=True, kw_only=True)
class Told(Lines):
    """Text alone: tasks "table", "chart", "scene", "repeat", "lines" and "numbers"."""

    name = "nano_told"
    category = "text"
    tasks_known: ClassVar[tuple[str, ...]] = ("table", "chart", "scene", "repeat", "lines", "numbers")

    turns: int = 4

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        told, questions = _TELLERS[self.pick_task(rng)](self, rng, language)
        draft = Draft(language=language)
        once = list(dict(questions).items())
        if not once:
            raise Dropped("no question has one answer")
        for number, (question, answer) in enumerate(once[: rng.randint(1, self.turns)]):
            draft.ask(f"{told}\n{question}" if told and number == 0 else question, answer)
        return draft

    def some_text(self, rng: random.Random, language: str) -> str:
        """Return words, or something without sense, which only repeating can get right."""
        return token(rng) if rng.random() < 0.25 else self.text(rng, language, 3, 30 if language == "en" else 12)


def _tell_table(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    table = make_table(rng, source.inputs, language)
    lines = [BETWEEN.join(map(AFTER_NAME.join, zip(table.header, row, strict=True))) for row in table.rows]
    tasks = rng.choices((*("lookup",) * 3, "reverse", *("extreme",) * 3, "rows", "unknown"), k=source.turns)
    made = [ask(rng, table, task, source.inputs) for task in tasks]
    return "\n".join(lines), [(question, answer) for question, answer, _ in filter(None, made)]


def _tell_chart(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    chart = make_chart(rng, source.inputs, language, rng.randint(2, 6))
    lines, asked = [chart.title] if chart.title else [], list[Asked]()
    for n, series in enumerate(chart.series):
        of = f"{series}{BETWEEN}" if len(chart.series) > 1 else ""
        for m, name in enumerate(chart.names):
            lines.append(f"{of}{name}{AFTER_NAME}{chart.labels[n][m]}")
            kind = "value_of_series" if of else "value"
            asked.append((phrase(kind, language, rng, row=name, series=series), chart.labels[n][m]))
    for made in (ask_extreme(rng, chart) for _ in range(MOST_EXTREMES)):
        if made is not None:
            question, m = made
            asked.append((question, number_and_name(chart.labels[0][m], chart.names[m], language)))
    rng.shuffle(asked)
    return "\n".join(lines), asked


def _tell_scene(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    pool = built_in_kinds()
    chosen = rng.sample(pool, rng.randint(1, 5))
    counts = {kind: rng.choice((1, 1, 1, 2, 3, 4)) for kind in chosen}
    shown = [kind.full_name(language) for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(shown)
    told = "、".join(shown) if language == "zh" else ", ".join(map(article, shown))
    asked = list[Asked]()
    for kind, count in counts.items():
        name = kind.full_name(language)
        noun = name if language == "zh" else plural(name)
        asked.append((phrase("count", language, rng, noun=noun, measure=kind.measure_zh), str(count)))
    for name in (rng.choice(shown), rng.choice(pool).full_name(language)):
        question = phrase("presence", language, rng, name=name, a_name=article(name))
        asked.append((question, YES_NO[language][name not in shown]))
    rng.shuffle(asked)
    return told, asked


def _tell_repeat(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    texts = [source.some_text(rng, language) for _ in range(source.turns)]
    return "", [(phrase("repeat", language, rng, text="{text}").replace("{text}", text), text) for text in texts]


def _tell_lines(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    lines = [source.some_text(rng, language) for _ in range(rng.randint(1, 5))]
    asked = [(phrase("read_nth", language, rng, n=str(at + 1)), line) for at, line in enumerate(lines)]
    asked.append((phrase("read_lines", language, rng), "\n".join(lines)))
    rng.shuffle(asked)
    return "\n".join(lines), asked


def _tell_numbers(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    asked, comma = list[Asked](), SEPARATOR[language]
    for _ in range(source.turns):
        kind, which = rng.choice(("sort", *("extreme_number", "extreme_name") * 2)), rng.randrange(2)
        numbers = list(dict.fromkeys(make_numbers(rng, rng.choice(NUM_NUMBERS))))
        rows = [row for row in names(rng, source.inputs, language, len(numbers), 9) if not row.isdigit()]
        if min(len(numbers), len(rows)) < 2:
            continue
        pairs = list(zip(rows, numbers, strict=False))
        in_order = sorted(pairs, key=lambda pair: number_of(pair[1]), reverse=which == 0)
        told = comma.join(f"{row} {number}" if kind == "extreme_name" else number for row, number in pairs)
        answer = {
            "sort": comma.join(number for _, number in in_order),
            "extreme_number": in_order[0][1],
            "extreme_name": number_and_name(in_order[0][1], in_order[0][0], language),
        }[kind]
        question = phrase(kind, language, rng, numbers="{numbers}", **words_for(which, language, rng))
        asked.append((question.replace("{numbers}", told), answer))
    return "", asked


_TELLERS: dict[str, Callable[[Told, random.Random, str], tuple[str, list[Asked]]]] = {
    "table": _tell_table,
    "chart": _tell_chart,
    "scene": _tell_scene,
    "repeat": _tell_repeat,
    "lines": _tell_lines,
    "numbers": _tell_numbers,
}
