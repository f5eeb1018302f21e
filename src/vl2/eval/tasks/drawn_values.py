"""Reading one value of a drawn bar chart, and one cell of a small drawn table. All numbers are synthetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from vl2.eval.drawn import draw_items, font_folders, item_of
from vl2.eval.protocols import ask, score_exact, score_relaxed
from vl2.eval.task import DataSource, Item, Protocol, Task, mean_score
from vl2.synth.primer_charts import PrimerBars, PrimerTable
from vl2.synth.source import Source

_LAYOUT = "is drawn; --fonts takes a folder of fonts"
Make = Callable[[tuple[str, ...] | None], Source]  # font folders -> source


def read_with(make: Make) -> Callable[[Task, DataSource], Iterator[Item]]:
    """Return a reader whose items are the first questions about the images of a synthetic source."""

    def read(task: Task, data_source: DataSource) -> Iterator[Item]:
        source = make(font_folders(data_source))

        def draw(rng: Random, id: str) -> Item:
            return item_of(source, source.draft(rng), id)

        return draw_items(task, draw)

    return read


CHART = Task(
    name="chart_values",
    title="Read one value off a small drawn bar chart",
    layout=_LAYOUT,
    read=read_with(lambda folders: PrimerBars(font_folders=folders, tasks=("value",), turns=1)),
    protocols={
        "vl2": Protocol(ask=ask, score=score_relaxed, says="Relaxed accuracy: off by at most 5 %.", max_new_tokens=24)
    },
    metric=mean_score,
    count=200,
)
TABLE = Task(
    name="table_values",
    title="Read one cell of a small drawn table",
    layout=_LAYOUT,
    read=read_with(lambda folders: PrimerTable(font_folders=folders, tasks=("lookup",), turns=1)),
    protocols={"vl2": Protocol(ask=ask, score=score_exact, says="Exact match without case.", max_new_tokens=24)},
    metric=mean_score,
    count=200,
)
