"""Reading one drawn line of English or Chinese text exactly; use --fonts for fonts that are not in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from vl2.eval.drawn import draw_items, font_folders, item_of, passages_file
from vl2.eval.protocols import ask, score_exact
from vl2.eval.score.text_rules import edit_distance, plain
from vl2.eval.task import DataSource, Item, Protocol, Result, Task, mean_score
from vl2.synth.fonts import BUILT_IN
from vl2.synth.primer_lines import PrimerReading
from vl2.synth.source import Dropped


def read_in(language: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    """Return a reader whose items are drawn lines in a language."""

    def read(task: Task, data_source: DataSource) -> Iterator[Item]:
        source = PrimerReading(
            tasks=("line",),
            languages=(language,),
            font_folders=font_folders(data_source),
            texts_en=passages_file(data_source, "en"),
            texts_zh=passages_file(data_source, "zh"),
        )

        def draw(rng: Random, id: str) -> Item:
            draft = source.draft(rng)
            if data_source.fonts is not None and draft.traits["font"] == BUILT_IN.name:
                raise Dropped("the font is not one of --fonts")
            return item_of(source, draft, id, part=draft.traits["font"])

        return draw_items(task, draw)

    return read


def line_metric(results: Sequence[Result]) -> dict[str, float]:
    """Return the percentages of lines read exactly and of correct characters."""
    wrong = sum(min(edit_distance(plain(r.answer), plain(r.gold[0])), len(plain(r.gold[0]))) for r in results)
    length = sum(len(plain(r.gold[0])) for r in results)
    return {"lines": mean_score(results)["score"], "characters": 100 * (1 - wrong / length) if length else 0.0}


def _task(language: str, name: str) -> Task:
    return Task(
        name=f"text_line_{language}",
        title=f"One drawn line of {name} text, read exactly",
        layout="is drawn; --fonts takes a folder of fonts, --data one with text/en.txt or text/zh.txt",
        read=read_in(language),
        protocols={
            "vl2": Protocol(ask=ask, score=score_exact, says="Exact match without case; also per character.",
                            max_new_tokens=96)
        },
        metric=line_metric,
        is_mean=True,
        count=200,
    )  # fmt: skip


ENGLISH, CHINESE = _task("en", "English"), _task("zh", "Chinese")
