"""What charts and tables are asked, drawn or told in words: answers are what they show."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import pytest

from experiments.nano.draw.answers import CANNOT_TELL
from experiments.nano.draw.chart_picture import Drawn
from experiments.nano.draw.charts import Chart, Charts, ask_extreme, make_chart
from experiments.nano.draw.tables import Table, Tables, ask, number_of
from experiments.nano.draw.told import Told
from tests.experiments.drawn import records, turns
from vl2.synth.source import Dropped

pytestmark = pytest.mark.usefixtures("no_system_fonts")

MOST = "(?i)highest|largest|greatest|ranks? first|on top|ahead|beats|best|comes? first"


def test_a_table_is_asked_about_as_it_stands(inputs: str) -> None:
    table = Table(
        "en", ("Name", "Age", "Town"), (("Ann", "31", "Oslo"), ("Bob", "45", "Rome"), ("Cid", "7", "Lima")), (1,)
    )
    rng, seen = random.Random(0), set[str]()
    for _ in range(200):
        task = rng.choice(("lookup", "reverse", "extreme", "rows"))
        made = ask(rng, table, task, inputs)
        assert made is not None
        question, answer, _ = made
        seen.add(task)
        if task == "rows":
            assert answer == "3"
        elif task == "extreme":
            assert answer == ("45 (Bob)" if re.search(MOST, question) else "7 (Cid)")
        else:
            (row,) = [row for row in table.rows if answer in row and any(cell in question for cell in row)]
            assert answer in row
    assert len(seen) == 4
    assert [number_of(cell) for cell in ("$1,250.50", "12%", "€3", "-4")] == [1250.5, 12, 3, -4]


def test_what_is_not_in_a_table_cannot_be_told(inputs: str) -> None:
    for record in records(Tables(inputs=inputs, languages=("en",), tasks=("unknown",))):
        for _, answer in turns(record):
            assert answer == CANNOT_TELL["en"]


def test_a_chart_is_asked_for_its_most_and_its_least() -> None:
    chart = Chart(
        language="en", kind="bars", title="", names=("Oslo", "Rome", "Lima"), series=("",), values=((9.5, 45.0, 7.0),),
        labels=(("9.5", "45.0", "7.0"),), is_printed=True, step=10, num_steps=5,
    )  # fmt: skip
    answers = Counter[str]()
    for n in range(100):
        made = ask_extreme(random.Random(n), chart)
        assert made is not None
        assert chart.names[made[1]] == ("Rome" if re.search(MOST, made[0]) else "Lima"), made[0]
        answers[chart.names[made[1]]] += 1
    assert min(answers["Rome"], answers["Lima"]) > 20
    asked = [ask_extreme(random.Random(n), replace(chart, values=((45.0, 45.0, 7.0),))) for n in range(20)]
    assert {made and chart.names[made[1]] for made in asked} == {None, "Lima"}, "two have the most"
    assert ask_extreme(random.Random(0), replace(chart, series=("", ""))) is None


def test_told_charts_are_asked_for_the_most_and_the_least(inputs: str) -> None:
    source, found = Told(inputs=inputs, languages=("en",), tasks=("chart",), turns=12), 0
    for record in records(source):
        told, _, first = turns(record)[0][0].rpartition("\n")
        lines = [line.split(": ") for line in told.split("\n") if ": " in line]
        values = {name: number_of(value) for name, value in lines}
        for question, answer in [(first, turns(record)[0][1]), *turns(record)[1:]]:
            number, of, name = answer.rstrip(")").partition(" (")
            if of and "|" not in told:
                found += 1
                assert values[name] == (max if re.search(MOST, question) else min)(values.values()), question
                assert number_of(number) == values[name]
    assert found > 20


def test_told_numbers_are_sorted_and_the_first_of_them_is_named(inputs: str) -> None:
    source, found = Told(inputs=inputs, languages=("en",), tasks=("numbers",), turns=12), Counter[str]()
    number = r"[$€£]?\d[\d,]*(?:\.\d+)?%?"
    for record in records(source, 60):
        for question, answer in turns(record):
            told = re.findall(rf"(?<![\w.]){number}(?![\w%])", re.sub(r",(?= |$)", " ", question))
            values = list(map(number_of, told))
            assert len(values) >= 2, question
            in_order = sorted(values, reverse=re.search(MOST, question) is not None)
            if ", " in answer:
                kind = "sort"
                assert list(map(number_of, answer.split(", "))) == in_order, question
            elif re.fullmatch(number, answer):
                kind = "number"
                assert number_of(answer) == in_order[0], question
            else:
                kind = "named"
                number_first, _, name = answer.rstrip(")").partition(" (")
                assert number_first == told[values.index(in_order[0])], question
                assert f"{name} {number_first}" in question
            found[kind] += 1
    assert min(found.values()) > 40
    assert len(found) == 3


def test_values_of_charts_are_written_in_several_ways(inputs: str) -> None:
    rng = random.Random(5)
    made = [chart.labels[0][0] for chart in (make_chart(rng, inputs, "en", 4) for _ in range(400)) if chart.is_printed]
    for form, least in ((r"\d+\.\d", 15), (r"\d+\.\d\d", 5), (r"\d,\d{3}", 10), (r"\d+%", 5)):
        assert sum(re.fullmatch(form, label) is not None for label in made) > least, form


def test_values_that_are_not_printed_lie_on_the_axis_or_halfway(inputs: str) -> None:
    rng, found = random.Random(3), 0
    for _ in range(90):
        chart = make_chart(rng, inputs, "en", 4)
        if not chart.is_printed:
            found += 1
            for row, labels in zip(chart.values, chart.labels, strict=True):
                assert all((2 * value / chart.step).is_integer() for value in row)
                assert [float(label) for label in labels] == list(row)
    assert found > 10


def test_a_chart_is_read_whole_where_all_of_it_is_written(inputs: str) -> None:
    source = Charts(inputs=inputs, languages=("en",), tasks=("read",), turns=1)
    for seed in range(20):
        draft = source.draft(random.Random(seed))
        answer = draft.messages[1]
        written = [draft.objects[number].label for number in answer.evidence]
        assert "".join("".join(written).split()) == "".join(str(answer.parts[0].text).split())


def charts(inputs: str, seed: int) -> Iterator[tuple[Chart, Drawn]]:
    """Draw charts without end."""
    source, rng = Charts(inputs=inputs, languages=("en",)), random.Random(seed)
    while True:
        with suppress(Dropped):
            yield source._draw(rng, "en")


def test_the_bars_of_a_chart_are_as_high_as_its_values(inputs: str) -> None:
    bars = (made for made in charts(inputs, 4) if made[0].kind in ("bars", "sideways"))
    for chart, drawn in islice(bars, 10):
        sides = [box[2] - box[0] if chart.kind == "sideways" else box[3] - box[1] for box in drawn.marks.values()]
        most = max(range(len(sides)), key=sides.__getitem__)
        assert chart.values[0][most] == max(chart.values[0])
        for side, value in zip(sides, chart.values[0], strict=True):
            assert side / sides[most] == pytest.approx(value / max(chart.values[0]), abs=0.03)


def test_the_values_of_a_line_stand_above_or_below_its_points(inputs: str) -> None:
    lines = (made for made in charts(inputs, 8) if made[0].kind == "line" and made[0].is_printed)
    for chart, drawn in islice(lines, 10):
        assert len(chart.series) == 1
        for m, label in enumerate(chart.labels[0]):
            text, letters = drawn.written.texts["value", 0, m]
            (x0, y0, x1, y1), box = drawn.marks[0, m], drawn.written.whole(("value", 0, m))
            assert text == label
            assert len(letters) == len(label)
            assert box[0] < (x0 + x1) / 2 < box[2]
            assert box[3] <= (y0 + y1) / 2 or box[1] >= (y0 + y1) / 2


def test_a_caption_stands_above_its_table(inputs: str) -> None:
    rng, source, seen = random.Random(9), Tables(inputs=inputs, languages=("en",)), 0
    for _ in range(40):
        try:
            written = source.page(rng)
        except Dropped:
            continue
        if "caption" in written.texts:
            seen += 1
            top = min(written.whole(key)[1] for key in written.texts if key != "caption")
            assert written.whole("caption")[3] <= top
    assert seen > 4


def test_what_is_told_holds_its_answers(inputs: str) -> None:
    repeated = 0
    for record in records(Told(inputs=inputs, languages=("en",)), 200):
        assert not record.images
        assert record.category == "text"
        for question, answer in turns(record):
            if match := re.fullmatch(r"(?:Repeat|Copy|Write down|Say this again|Write this again): (.+)", question):
                repeated += 1
                assert answer == match[1]
    assert repeated > 20
