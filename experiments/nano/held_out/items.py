"""Make held-out items: every one is a function of its task's name and its number, so a limit takes the first ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.nano.held_out.phrasings import Phrases
from vl2.eval.task import DataSource, Item, Metric, Protocol, Score, Task, mean_score
from vl2.process.conversation import user_turn

SEED = "held out, second kind"
MAX_TRIES = 200
CHINESE_SHARE = 0.25  # where a task asks in both languages

Draw = Callable[[Random, str, DataSource], Item]  # a generator, an id, and where fonts and sprites are


class Redraw(Exception):
    """What was made up cannot be drawn legibly: something else is made up."""


def rng_of(task: str, number: int, attempt: int = 0) -> Random:
    return Random(f"{SEED}/{task}/{number}/{attempt}")


def draw_item(name: str, draw: Draw, number: int, source: DataSource) -> Item:
    """Return the item of a number, at the first attempt that can be drawn."""
    for attempt in range(MAX_TRIES):
        try:
            return draw(rng_of(name, number, attempt), f"{name}-{number:05d}", source)
        except Redraw:
            continue
    raise AssertionError(f"{name} {number} could not be drawn in {MAX_TRIES} attempts")


def drawn_task(
    name: str,
    title: str,
    draw: Draw,
    score: Callable[[Item, str], Score],
    says: str,
    *,
    max_new_tokens: int = 32,
    metric: Metric = mean_score,
) -> Task:
    """Return a task whose items are drawn without end."""

    def read(task: Task, source: DataSource) -> Iterator[Item]:
        return (draw_item(name, draw, number, source) for number in count())

    return Task(
        name=name,
        title=title,
        layout="is drawn",
        read=read,
        protocols={"vl2": protocol(score, says, max_new_tokens)},
        metric=metric,
        is_mean=True,
        count=400,
    )


def protocol(score: Callable[[Item, str], Score], says: str, max_new_tokens: int) -> Protocol:
    return Protocol(
        ask=lambda item: [user_turn(item.question, item.images)], score=score, says=says, max_new_tokens=max_new_tokens
    )


def phrase(rng: Random, phrases: Phrases, language: str, **words: str) -> str:
    """Return one of the phrasings with its words filled in; {Noun} is {noun} with a capital."""
    if "noun" in words:
        words["Noun"] = words["noun"].capitalize()
    return rng.choice(phrases[language]).format(**words)


def picture_of(figure: Figure) -> Image.Image:
    """Draw a figure of matplotlib, without a window."""
    canvas: Any = FigureCanvasAgg(figure)  # whose methods are not annotated
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
