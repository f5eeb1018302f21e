"""One value from a drawn bar chart, and one cell from a drawn small table. All numbers are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from PIL import Image

from vl2.data.construct import fonts
from vl2.data.construct.chart import MAX_NAME, VALUE, draw_chart
from vl2.data.construct.source import Dropped
from vl2.data.construct.table_image import STYLES, draw_table
from vl2.data.construct.table_questions import TEXTS
from vl2.data.construct.tables import Table, made_up
from vl2.eval.asking import ask
from vl2.eval.drawn import drawn, font_folders, png
from vl2.eval.marking import mark_exact, mark_relaxed
from vl2.eval.task import Item, Task, Way, Where, mean_score

BARS = ("bar", "barh")
_LAYOUT = "is drawn; --fonts takes a folder of fonts"

# Draws a table, or a part of it, and says in which words a value is asked for.
Show = Callable[[Table, fonts.Face, Random], Image.Image]


def read_with(
    show: Show, questions: Mapping[str, tuple[str, ...]], *, one_column: bool
) -> Callable[[Task, Where], Iterator[Item]]:
    def read(task: Task, where: Where) -> Iterator[Item]:
        folders = font_folders(where)
        languages = fonts.languages(folders)

        def draw(rng: Random, id: str) -> Item:
            table = made_up(rng, rng.choice(languages))
            if one_column:
                table = table.part(range(len(table.rows)), [0, rng.randrange(1, len(table.header))])
            face = fonts.choose_face(rng, table.text + "0123456789.-", folders)
            if face is None or any(len(name) > MAX_NAME for name in table.column(0)):
                raise Dropped("no font draws the table" if face is None else "a name is too long")
            row, column = rng.choice(table.rows), rng.randrange(1, len(table.header))
            question = questions[table.language][0].format(row=row[0], column=table.header[column])
            image = png(show(table, face, rng))
            return Item(id=id, question=question, images=(image,), gold=[row[column]], part=table.language)

        return drawn(task, draw)

    return read


def _bars(table: Table, face: fonts.Face, rng: Random) -> Image.Image:
    return draw_chart(table, rng.choice(BARS), face, rng, printed=True)


def _grid(table: Table, face: fonts.Face, rng: Random) -> Image.Image:
    return draw_table(table, fonts.load(face, rng.randint(13, 20)), rng.choice(STYLES), rng)


CHART = Task(
    name="chart_values",
    title="Read one value off a drawn bar chart",
    layout=_LAYOUT,
    read=read_with(_bars, VALUE, one_column=True),
    ways={"vl2": Way(messages=ask, mark=mark_relaxed, says="Relaxed accuracy: off by at most 5 %.", max_new_tokens=24)},
    metric=mean_score,
    count=200,
)
TABLE = Task(
    name="table_values",
    title="Read one cell of a drawn small table",
    layout=_LAYOUT,
    read=read_with(_grid, {language: TEXTS[language]["lookup"] for language in TEXTS}, one_column=False),
    ways={"vl2": Way(messages=ask, mark=mark_exact, says="Exact match without case.", max_new_tokens=24)},
    metric=mean_score,
    count=200,
)
