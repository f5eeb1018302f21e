"""Naming an emoji in English or Chinese, drawn in a style that is held out from training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from vl2.eval.drawn import draw_items, png, sprite_folder
from vl2.eval.protocols import ask, score_exact
from vl2.eval.task import DataSource, Item, Protocol, Task, mean_score
from vl2.synth.emoji import draw_alone
from vl2.synth.scene_words import NAME_IT, named
from vl2.synth.sprites import built_in_kinds, read_kinds

SIDE_PX = 224
QUESTION = 2  # "Name the object in the image.", whose answer is the bare name


def read_in(language: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    def read(task: Task, data_source: DataSource) -> Iterator[Item]:
        art = sprite_folder(data_source, "openmoji")
        kinds = read_kinds(art) if art else built_in_kinds()

        def draw(rng: Random, id: str) -> Item:
            kind = rng.choice(kinds)
            image = draw_alone(kind, (SIDE_PX, SIDE_PX), rng)
            name = kind.full_name(language)
            golds = [named(answer, name) for _, *answers in NAME_IT[language] for answer in answers]
            golds.sort(key=len)  # the bare name first
            return Item(id=id, question=NAME_IT[language][QUESTION][0], images=(png(image),), gold=golds,
                        part=kind.group)  # fmt: skip

        return draw_items(task, draw)

    return read


def _task(language: str, name: str) -> Task:
    return Task(
        name=f"emoji_names_{language}",
        title=f"Name an emoji in {name}, in a style held out from training",
        layout="is drawn from the sprite set in --data (openmoji), else from the built-in shapes",
        read=read_in(language),
        protocols={"vl2": Protocol(ask=ask, score=score_exact, max_new_tokens=32,
                                   says="Exact match of the name, or of a sentence that only says the name.")},
        metric=mean_score,
        count=200,
    )  # fmt: skip


ENGLISH, CHINESE = _task("en", "English"), _task("zh", "Chinese")
