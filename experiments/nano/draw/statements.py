"""Statements about drawn scenes of three boxes, true or false, as in NLVR: counts, colors, forms, and in which box."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, ImageDraw

from experiments.nano.draw.base import NanoSource
from experiments.nano.draw.phrasing import phrase
from vl2.data.record import BoxPx
from vl2.datasets.drawn_sets import statement
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.source import Dropped

COLORS = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 220, 0)}
FORMS = ("square", "circle", "triangle")
SIDES = (10, 20, 30)  # px, of a scene 400 px wide
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
ATTEMPTS = 60


@dataclass(frozen=True)
class Item:
    """One thing of a scene: in which of the three boxes, and where in the picture."""

    form: str
    color: str
    box: int
    at: BoxPx


Holds = Callable[[Item], bool]


@dataclass(frozen=True, kw_only=True)
class Statements(NanoSource):
    """Three statements about a scene, each as often true as not."""

    name = "nano_statements"
    category = "vqa"
    tasks_known: ClassVar[tuple[str, ...]] = ("statement",)

    turns: int = 5

    def draft(self, rng: random.Random) -> Draft:
        factor = rng.choice((1.0, 1.0, 1.0, rng.uniform(0.9, 2.0)))
        image, items = draw_boxes(rng, factor)
        draft = Draft(language="en")
        draft.picture(image)
        asked = set[str]()
        for _ in range(rng.randint(2, self.turns)):
            sentence, is_true, seen = make_statement(rng, items, is_true=rng.random() < 0.5)
            if sentence in asked:
                continue
            asked.add(sentence)
            question, answer = statement(sentence, is_true)
            question = question if rng.random() < 0.5 else phrase("is_true", "en", rng, statement=sentence)
            shown = [draft.show(name, [item.at for item in items if holds(item)]) for name, holds in seen]
            draft.ask(question, answer, shown)
        return draft


def draw_boxes(rng: random.Random, factor: float) -> tuple[Image.Image, list[Item]]:
    """Draw three boxes with one to eight things each."""
    width, height = round(400 * factor), round(100 * factor)
    image = Image.new("RGB", (width, height), (190, 190, 190))
    draw, items = ImageDraw.Draw(image), list[Item]()
    colors, forms = rng.sample(sorted(COLORS), rng.randint(1, 3)), rng.sample(FORMS, rng.randint(1, 3))
    for number in range(3):
        left = number * 150 * factor
        draw.rectangle((left, 0, left + 100 * factor, height), fill=(230, 230, 230))
        taken = list[BoxPx]()
        is_tower = rng.random() < 0.2
        x, y = rng.randint(10, 60), 100
        for _ in range(rng.randint(1, 4 if is_tower else 8)):
            side = 20 if is_tower else rng.choice(SIDES)
            for _ in range(ATTEMPTS):
                if is_tower:
                    y -= side
                    spot = (x, y, x + side, y + side)
                else:
                    a, b = rng.randint(0, 100 - side), rng.randint(0, 100 - side)
                    spot = (a, b, a + side, b + side)
                if all(spot[2] <= o[0] or o[2] <= spot[0] or spot[3] <= o[1] or o[3] <= spot[1] for o in taken):
                    break
            else:
                continue
            taken.append(spot)
            at = tuple(value * factor + (left if n % 2 == 0 else 0) for n, value in enumerate(spot))
            form = "square" if is_tower else rng.choice(forms)
            right, bottom = min(at[2], width), min(at[3], height)
            items.append(Item(form, rng.choice(colors), number, (at[0], at[1], right, bottom)))
            _draw_item(draw, items[-1])
    if not items:
        raise Dropped("an empty scene")
    return image, items


def _draw_item(draw: ImageDraw.ImageDraw, item: Item) -> None:
    x0, y0, x1, y1 = item.at
    color = COLORS[item.color]
    if item.form == "square":
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
    elif item.form == "circle":
        draw.ellipse((x0, y0, x1 - 1, y1 - 1), fill=color)
    else:
        draw.polygon(((x0, y1 - 1), (x1 - 1, y1 - 1), ((x0 + x1) / 2, y0)), fill=color)


Made = tuple[str, bool, list[tuple[str, Holds]]]  # a sentence, whether it holds, and what it speaks of


def make_statement(rng: random.Random, items: Sequence[Item], *, is_true: bool) -> Made:
    """Return a statement that holds or not, as wished. Dropped if none is found."""
    for _ in range(ATTEMPTS):
        made = rng.choice(_MAKERS)(rng, items)
        if made[1] == is_true:
            return made
    raise Dropped("no statement is as wished")


def _group(rng: random.Random) -> tuple[str, Holds]:
    """Return what is spoken of, in the singular, and which things it is."""
    form, color, kind = rng.choice(FORMS), rng.choice(sorted(COLORS)), rng.random()
    if kind < 0.55:
        return f"{color} {form}", lambda item: item.form == form and item.color == color
    if kind < 0.8:
        return form, lambda item: item.form == form
    noun = rng.choice(("item", "object", "thing"))
    return f"{color} {noun}", lambda item: item.color == color


def _amount(rng: random.Random, items: Sequence[Item]) -> Made:
    name, holds = _group(rng)
    found, number = sum(map(holds, items)), rng.randint(1, 8)
    if rng.random() < 0.5:
        number = max(1, min(8, found + rng.choice((-1, 0, 0, 1))))
    said = NUMBERS[number] if rng.random() < 0.6 else str(number)
    noun = name if number == 1 else plural(name)
    verb = "is" if number == 1 else "are"
    kind = rng.choice(("exactly", "at least", "at most", "exactly"))
    is_true = {"exactly": found == number, "at least": found >= number, "at most": found <= number}[kind]
    return f"There {verb} {kind} {said} {noun}.", is_true, [(noun, holds)]


def _there_is(rng: random.Random, items: Sequence[Item]) -> Made:
    name, holds = _group(rng)
    if rng.random() < 0.4:
        noun = plural(name)
        return f"There are no {noun}.", not any(map(holds, items)), [(noun, holds)]
    return f"There is {article(name)}.", any(map(holds, items)), [(name, holds)]


def _in_boxes(rng: random.Random, items: Sequence[Item]) -> Made:
    name, holds = _group(rng)
    have = {item.box for item in items if holds(item)}
    kind = rng.randrange(4)
    if kind == 0:
        return f"Every box has {article(name)}.", len(have) == 3, [(name, holds)]
    if kind == 1:
        return f"Exactly one box has {article(name)}.", len(have) == 1, [(name, holds)]
    if kind == 2:
        other, also = _group(rng)
        both = have & {item.box for item in items if also(item)}
        return f"There is a box with {article(name)} and {article(other)}.", bool(both), [(name, holds), (other, also)]
    number = rng.randint(1, 8)
    sizes = [sum(item.box == box for item in items) for box in range(3)]
    noun = "item" if number == 1 else "items"
    return f"There is a box with exactly {NUMBERS[number]} {noun}.", number in sizes, [(noun, lambda _: True)]


def _more(rng: random.Random, items: Sequence[Item]) -> Made:
    (name, holds), (other, also) = _group(rng), _group(rng)
    if name == other:
        return _amount(rng, items)
    first, second = plural(name), plural(other)
    is_true = sum(map(holds, items)) > sum(map(also, items))
    return f"There are more {first} than {second}.", is_true, [(first, holds), (second, also)]


def _all(rng: random.Random, items: Sequence[Item]) -> Made:
    form, color = rng.choice(FORMS), rng.choice(sorted(COLORS))
    mine = [item for item in items if item.form == form]
    if not mine or rng.random() < 0.4:
        is_true = all(item.color == color for item in items)
        return f"All items are {color}.", is_true, [("items", lambda _: True)]
    noun = plural(form)
    return f"All {noun} are {color}.", all(i.color == color for i in mine), [(noun, lambda i: i.form == form)]


_MAKERS = (_amount, _amount, _there_is, _in_boxes, _in_boxes, _more, _all)
