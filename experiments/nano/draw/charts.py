"""What charts show, and what is asked about them: bars upright and lying, in groups, and lines; with values or without.

Where no value is printed it is read off the axis; then values lie on its ticks or halfway between two, so that there
is one right answer. Half of the questions about such charts are which is the most and how many there are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from experiments.nano.draw.answers import CANNOT_TELL
from experiments.nano.draw.base import NanoSource, Written
from experiments.nano.draw.chart_picture import Drawn, draw_chart
from experiments.nano.draw.extremes import number_and_name, words_for
from experiments.nano.draw.frame import choose_size, scale_of, text_px
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.vocabulary import names, word
from vl2.synth import fonts
from vl2.synth.draft import Draft
from vl2.synth.source import Dropped

Kind = Literal["bars", "sideways", "grouped", "line"]
KINDS: tuple[Kind, ...] = ("bars", "bars", "sideways", "sideways", "grouped", "grouped", "line")
STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
ATTEMPTS = 6  # charts tried, of which some have too long names
MARK = "a bar or point"  # what a value that is not printed is read off
BOLD = 0.3  # share of charts whose title is bold
PRINTED = 0.85  # share of bar charts with their values
PRINTED_LINE = 0.6  # of charts of one line; those of several would lie on one another
LEAST_TURNS = 6  # of questions about a picture that is asked about several times


@dataclass(frozen=True)
class Chart:
    """Names, and one or more series of values with a text for each."""

    language: str
    kind: Kind
    title: str
    names: tuple[str, ...]
    series: tuple[str, ...]  # of one the name is not shown
    values: tuple[tuple[float, ...], ...]  # by series
    labels: tuple[tuple[str, ...], ...]
    is_printed: bool
    step: float  # between two numbers of the axis
    num_steps: int

    @property
    def top(self) -> float:
        """The highest number of the axis."""
        return self.step * self.num_steps

    @property
    def can_be_read(self) -> bool:
        """Tell whether a list of names and values says it all, and all of it is written."""
        return len(self.series) == 1 and self.is_printed

    @property
    def text(self) -> str:
        return self.title + "".join(self.names) + "".join(self.series) + "0123456789.,%"


@dataclass(frozen=True, kw_only=True)
class Charts(NanoSource):
    """Tasks "value", "extreme", "number", "title", "unknown" and "read" (all names with their values)."""

    name = "nano_charts"
    category = "table_chart"
    tasks_known: ClassVar[tuple[str, ...]] = (
        *("value",) * 7,
        *("extreme",) * 4,
        "number",
        "title",
        "unknown",
        "read",
    )

    turns: int = 14

    def page(self, rng: random.Random) -> Written:
        return self._draw(rng, rng.choice(self.languages))[1].written

    def _draw(self, rng: random.Random, language: str) -> tuple[Chart, Drawn]:
        """Draw a chart whose names fit."""
        why = Dropped("no chart can be read whole")
        for _ in range(ATTEMPTS):
            size = choose_size(rng)
            num = rng.randint(2, 8 if min(size) * scale_of(size) > 200 else 5)
            chart = make_chart(rng, self.inputs, language, num)
            if self.tasks == ("read",) and not chart.can_be_read:
                continue
            face, px = self.face(rng, chart.text), text_px(rng, size, 10, 24)
            bold = self.bold(face, chart.text) if rng.random() < BOLD else face
            try:
                return chart, draw_chart(rng, chart, size, fonts.load(face, px), fonts.load(bold, px))
            except Dropped as error:
                why = error
        raise why

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        chart, drawn = self._draw(rng, language)
        draft = Draft(language=language, traits={"kind": chart.kind})
        drawn.written.picture(draft, rng)
        asked = set[str]()
        for _ in range(rng.randint(min(LEAST_TURNS, self.turns), self.turns)):
            task = self.pick_task(rng)
            if task in ("number", "title", "read") and task in asked:
                continue
            question = self._ask(rng, draft, chart, drawn, task, asked)
            if question is not None:
                asked |= {question, task}
            if task == "read" and question is not None:
                break  # what is asked after it could be copied from its answer
        if not asked:
            raise Dropped("no question has one answer")
        return draft

    def _ask(
        self, rng: random.Random, draft: Draft, chart: Chart, drawn: Drawn, task: str, asked: set[str]
    ) -> str | None:
        """Add a turn and return its question; None if there is none, or it was asked already."""
        language, written = chart.language, drawn.written
        n, m = rng.randrange(len(chart.series)), rng.randrange(len(chart.names))
        if task == "value":
            name, series = chart.names[m], chart.series[n]
            is_one = len(chart.series) == 1
            question = phrase("value" if is_one else "value_of_series", language, rng, row=name, series=series)
            if question in asked:
                return None
            shown = written.show(draft, [("name", m), *([] if is_one else [("series", n)])])
            draft.ask(question, chart.labels[n][m], [*shown, _show_value(draft, chart, drawn, n, m)])
            return question
        if task == "extreme":
            made = ask_extreme(rng, chart)
            if made is None or made[0] in asked:
                return None
            question, m = made
            shown = [_show_value(draft, chart, drawn, 0, m), *written.show(draft, [("name", m)])]
            name, number = chart.names[m], chart.labels[0][m]
            answer = number_and_name(number, name, language) if chart.is_printed else name
            draft.ask(question, answer, shown)
            return question
        if task == "number":
            question, answer = phrase("number_of_bars", language, rng), str(len(chart.names))
            shown = [written.show_whole(draft, "items", [("name", at) for at in range(len(chart.names))])]
        elif task == "title":
            if not chart.title:
                return None
            question, answer = phrase("title", language, rng), chart.title
            shown = written.show(draft, ["title"])
        elif task == "unknown":
            other = word(rng, self.inputs, language)
            if other.casefold() in chart.text.casefold():
                return None
            question, answer, shown = phrase("value", language, rng, row=other), CANNOT_TELL[language], []
        else:
            if not chart.can_be_read:
                return None
            question = phrase("read_chart", language, rng)
            answer = "\n".join(f"{name} {label}" for name, label in zip(chart.names, chart.labels[0], strict=True))
            keys = [key for at in range(len(chart.names)) for key in (("name", at), ("value", 0, at))]
            shown = written.show(draft, keys)
        if question in asked:
            return None
        draft.ask(question, answer, shown)
        return question


def _show_value(draft: Draft, chart: Chart, drawn: Drawn, n: int, m: int) -> int:
    """Add as evidence a value, or the mark that it is read off, and return its number."""
    if chart.is_printed:
        return drawn.written.show(draft, [("value", n, m)])[0]
    return draft.show(MARK, [drawn.written.moved(drawn.marks[n, m])])


def ask_extreme(rng: random.Random, chart: Chart) -> tuple[str, int] | None:
    """Ask which has the most or the least, and return the question and the place of its answer among the names.

    None if several have it, or there are several series.
    """
    which, values = rng.randrange(2), chart.values[0]
    wanted = (max, min)[which](values)
    if len(chart.series) > 1 or values.count(wanted) > 1:
        return None
    return phrase("extreme", chart.language, rng, **words_for(which, chart.language, rng)), values.index(wanted)


def make_chart(rng: random.Random, inputs: str, language: str, num: int) -> Chart:
    """Make up what a chart shows."""
    kind = rng.choice(KINDS)
    num_series = rng.randint(2, 3) if kind == "grouped" else rng.choice((1, 1, 2)) if kind == "line" else 1
    longest = 12 if language == "en" else 5
    rows = names(rng, inputs, language, num, longest if kind == "sideways" else 9)
    if len(rows) < 2:
        raise Dropped("no names are as short as wished")
    num_words = rng.choice((0, 1, 1, 1, 2)) if language == "en" else rng.choice((0, 1, 1, 1))
    title = " ".join(word(rng, inputs, language) for _ in range(num_words))  # "": none
    series = names(rng, inputs, language, num_series, 9)
    if len(series) < num_series:
        raise Dropped("no names are as short as wished")
    step, num_steps = rng.choice(STEPS), rng.randint(3, 6)
    is_printed = rng.random() < (PRINTED if kind != "line" else PRINTED_LINE if num_series == 1 else 0)
    values, labels = _values(rng, step, num_steps, (num_series, len(rows)), is_printed)
    return Chart(
        language=language, kind=kind, title=title, names=rows, series=series, values=values, labels=labels,
        is_printed=is_printed, step=step, num_steps=num_steps,
    )  # fmt: skip


def _values(
    rng: random.Random, step: float, num_steps: int, shape: tuple[int, int], is_printed: bool
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[str, ...], ...]]:
    """Return values by series, and their texts."""
    top = step * num_steps
    places = rng.choice((0, 0, 0, 1, 1, 2)) if top <= 500 else 0
    comma = rng.choice(("", "", ","))
    percent = "%" if rng.random() < 0.15 and top <= 100 else ""
    values = list[tuple[float, ...]]()
    for _ in range(shape[0]):
        if is_printed:
            row = [round(rng.uniform(0.05, 1.0) * top, places) for _ in range(shape[1])]
        else:
            row = [rng.randint(1, 2 * num_steps) * step / 2 for _ in range(shape[1])]
        values.append(tuple(row))
    form = f"{comma}.{places}f" if is_printed else "g"
    return tuple(values), tuple(tuple(f"{value:{form}}" + percent * is_printed for value in row) for row in values)
