"""Scenes of shapes or emoji: what is there, how many, where, and what the picture does not say.

The questions about a scene come in an order in which none gives the next away, and begin with any kind: what never
comes first is not learned as a question of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments.nano.draw.answers import ABSENT, CANNOT_TELL
from experiments.nano.draw.base import NanoSource
from experiments.nano.draw.frame import choose_size
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.things import compose
from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.scene import Composed, absent_kind
from vl2.synth.scene_words import CAPTION, DESCRIBE, SIDES, amount, join
from vl2.synth.shapes import COLORS
from vl2.synth.source import Dropped
from vl2.synth.sprites import Kind, built_in_kinds, read_kinds, things

YES_NO = {"en": ("Yes.", "No."), "zh": ("有。", "没有。")}
OBJECTS = {"en": ("objects", "things", "items", "shapes"), "zh": ("物体", "东西", "图形")}
# What no picture of things tells.
UNKNOWABLE = {
    "en": ("What does the {name} cost?", "Who owns the {name}?", "How old is the {name}?", "How heavy is the {name}?"),
    "zh": ("{name}多少钱？", "{name}是谁的？", "{name}有多重？"),
}
MOST = 9
# Shares of scenes of shapes: a few forms in a few colors, or all with one form or one color in common.
CROSSED, NEAR = 0.45, 0.25


@dataclass(frozen=True, kw_only=True)
class Scenes(NanoSource):
    """Questions about one scene: `kinds_of` is "shapes", or a sprite set among the inputs' art."""

    name = "nano_scenes"
    category = "vqa"
    tasks_known: ClassVar[tuple[str, ...]] = ("presence", "count", "colour", "side", "unknown", "place", "caption")

    kinds_of: str = "shapes"

    def pool(self) -> tuple[Kind, ...]:
        if self.kinds_of == "shapes":
            return built_in_kinds()
        return things(read_kinds(str(Path(self.inputs) / f"art/{self.kinds_of}")))

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        composed = compose(self._wanted(rng), choose_size(rng), rng)
        if not composed.placed:
            raise Dropped("nothing found room")
        draft = Draft(language=language, traits={"objects": str(len(composed.placed))})
        draft.picture(composed.image)
        asker = _Asker(draft, composed, self.pool(), rng)
        wanted = self.tasks or self.tasks_known
        if wanted == ("place",):
            asker.places()
        else:
            asker.everything(wanted)
        draft.category = None
        return draft

    def _wanted(self, rng: random.Random) -> list[Kind]:
        """Return the kinds of a scene, one for each thing: up to nine of a kind, and a dozen things."""
        pool = self.pool()
        is_counted = self.tasks == ("count",)
        shares = (2, 3, 3, 2, 1) if is_counted else (3, 3, 3, 2, 1)
        num_kinds = rng.choices((1, 2, 3, 4, 5), shares)[0]
        chosen = rng.sample(pool, num_kinds)
        roll = rng.random() if self.kinds_of == "shapes" else 1.0
        if roll < CROSSED:
            crossed = _crossed(pool, rng)
            chosen = rng.sample(crossed, min(num_kinds, len(crossed) - 1))  # one is asked for and not there
        elif roll < CROSSED + NEAR:
            near = [kind for kind in pool if kind.en == chosen[0].en or kind.color == chosen[0].color]
            chosen = [chosen[0], *rng.sample(near, num_kinds - 1)]
        others = (1, 1, 1, 2, 3) if is_counted else (1, 1, 2, 3, 4, 5)  # where all are many, few have room
        counts = [rng.randint(1, MOST), *(rng.choice(others) for _ in chosen[1:])]
        if self.tasks == ("place",):
            counts = [rng.choice((1, 1, 1, 1, 2)) for _ in chosen]
        rng.shuffle(counts)
        wanted = [kind for kind, count in zip(dict.fromkeys(chosen), counts, strict=False) for _ in range(count)][:14]
        rng.shuffle(wanted)
        return wanted


def _crossed(pool: tuple[Kind, ...], rng: random.Random) -> list[Kind]:
    """Return all combinations of a few forms and colors: neither alone tells which thing is meant."""
    forms, colors = (
        rng.sample(sorted(all_of), min(len(all_of), rng.randint(2, 3)))
        for all_of in ({kind.en for kind in pool}, {kind.color for kind in pool})
    )
    return [kind for kind in pool if kind.en in forms and kind.color in colors]


class _Asker:
    """Adds questions about a scene to a draft, none twice."""

    def __init__(self, draft: Draft, composed: Composed, pool: tuple[Kind, ...], rng: random.Random) -> None:
        self.draft, self.composed, self.pool, self.rng = draft, composed, pool, rng
        self.language = draft.language
        self._asked = set[str]()

    def everything(self, tasks: tuple[str, ...]) -> None:
        """Ask in an order that begins with any of the kinds of question; places come last, for they tell all else."""
        first: dict[str, Callable[[], None]] = {
            "presence": self.presences,
            "count": self.counts,
            "colour": self.colors,
            "side": self.side,
            "unknown": self.unknown,
        }
        order = [task for task in first if task in tasks]
        self.rng.shuffle(order)
        for task in order[: self.rng.randint(1, len(order))] if order else ():
            first[task]()
        if not self._asked or ("place" in tasks and self.rng.random() < 0.35):
            self.places()
        if "caption" in tasks and self.rng.random() < 0.12:
            self.caption()

    def _ask(self, question: str, answer: str, evidence: list[int]) -> None:
        if question not in self._asked:
            self._asked.add(question)
            self.draft.ask(question, answer, evidence)

    def _named(self, label: str) -> list[BoxPx]:
        return self.composed.boxes(self.language, label)

    def presences(self) -> None:
        present = [kind.full_name(self.language) for kind in self.composed.kinds()]
        if self.rng.random() < 0.3:
            present += [kind.name(self.language) for kind in self.composed.kinds()]
        missing = [kind.full_name(self.language) for kind in self._missing(2)]
        some = self.rng.sample(present + missing, min(3, len(present + missing)))
        for name in dict.fromkeys(some):
            boxes = self._named(name)
            question = phrase("presence", self.language, self.rng, name=name, a_name=article(name))
            self._ask(question, YES_NO[self.language][not boxes], [self.draft.show(name, boxes)])

    def _missing(self, count: int) -> Iterator[Kind]:
        """Yield kinds that are not there. Often other things have their form and their color."""
        shown = self.composed.kinds()
        forms, colors = {kind.en for kind in shown}, {kind.color for kind in shown if kind.color}
        crossed = [kind for kind in self.pool if kind.en in forms and kind.color in colors and kind not in shown]
        for _ in range(count):
            if crossed and self.rng.random() < 0.65:
                yield self.rng.choice(crossed)
                continue
            kind = absent_kind(self.composed, self.pool, self.language, self.rng)
            if kind is not None:
                yield kind

    def counts(self) -> None:
        """Ask how many there are in all, or of each kind, or of a form or color: not of all three, for they add up."""
        chosen = self.rng.random()
        if chosen < 0.3:
            noun = self.rng.choice(OBJECTS[self.language])
            question = phrase("count_all", self.language, self.rng)
            said = next((noun for noun in OBJECTS[self.language] if noun in question), noun)
            shown = self.draft.show(said, sorted(thing.box for thing in self.composed.placed))
            self._ask(question, str(len(self.composed.placed)), [shown])
        elif chosen < 0.5 and self.composed.kinds()[0].color:
            for color in dict.fromkeys(kind.color for kind in self.composed.kinds()):
                boxes = sorted(thing.box for thing in self.composed.placed if thing.kind.color == color)
                noun = f"{color} things" if self.language == "en" else f"{COLORS[color][0]}的东西"
                self._count(noun, noun, boxes, "个")
        else:
            by_form = chosen < 0.65
            kinds = [*self.composed.kinds(), *(kind for kind in self._missing(1) if self.rng.random() < 0.3)]
            for kind in self.rng.sample(kinds, len(kinds)):
                name = kind.name(self.language) if by_form else kind.full_name(self.language)
                self._count(name, name if self.language == "zh" else plural(name), self._named(name), kind.measure_zh)

    def _count(self, name: str, noun: str, boxes: list[BoxPx], measure: str) -> None:
        question = phrase("count", self.language, self.rng, noun=noun, measure=measure)
        self._ask(question, str(len(boxes)), [self.draft.show(noun, boxes)])

    def colors(self) -> None:
        """Ask for the color of what has a name, and for the name of what has a color, where one fits."""
        kinds, lang = self.composed.kinds(), self.language
        for kind in self.rng.sample(kinds, min(2, len(kinds))):
            if not kind.color:
                return
            name, color, whole = kind.name(lang), kind.color_name(lang), kind.full_name(lang)
            if sum(kind.en == other.en for other in kinds) == 1:
                question = phrase("colour_of", lang, self.rng, name=name)
                self._ask(question, color, [self.draft.show(name, self._named(whole))])
            elif sum(kind.color == other.color for other in kinds) == 1:
                question = phrase("of_colour", lang, self.rng, color=color)
                self._ask(question, name, [self.draft.show(color, self._named(whole))])

    def side(self) -> None:
        """Ask how one single thing lies to another, where that is plain to see."""
        single = [thing for thing in self.composed.placed if self.composed.count(thing.kind) == 1]
        if len(single) < 2:
            return
        first, second = self.rng.sample(single, 2)
        (a, b), lang = (first.box, second.box), self.language
        apart = {"left": b[0] - a[2], "right": a[0] - b[2], "above": b[1] - a[3], "below": a[1] - b[3]}
        side = max(apart, key=lambda key: apart[key])
        if apart[side] > 0:
            names = first.kind.full_name(lang), second.kind.full_name(lang)
            question = phrase("where", lang, self.rng, first=names[0], second=names[1])
            shown = [self.draft.show(name, [thing.box]) for name, thing in zip(names, (first, second), strict=True)]
            self._ask(question, SIDES[lang][f"{side}_answer"], shown)

    def unknown(self) -> None:
        """Ask what the picture does not tell."""
        lang = self.language
        if self.rng.random() < 0.5:
            name = self.rng.choice(self.composed.kinds()).full_name(lang)
            of_name = self.rng.choice(UNKNOWABLE[lang]).format(name=name)
            self._ask(self.rng.choice((of_name, phrase("unanswerable", lang, self.rng))), CANNOT_TELL[lang], [])
            return
        for kind in self._missing(1):
            name = kind.name(lang)
            if not self._named(name):
                question = phrase("colour_of", lang, self.rng, name=name)
                answer = self.rng.choice(ABSENT[lang]).format(name=name)
                self._ask(question, answer, [self.draft.show(name, [])])

    def places(self) -> None:
        """Ask where the things of each kind are, and now and then of one that is not there."""
        lang, kinds = self.language, self.composed.kinds()
        for kind in self.rng.sample(kinds, min(4, len(kinds))):
            name = kind.name(lang) if self.rng.random() < 0.25 else kind.full_name(lang)
            question = locate_phrases.locate(self.rng, lang, name)
            if question not in self._asked:
                self._ask(question, self.draft.box(name, self._named(name)), [])
        if self.rng.random() < 0.25:
            for kind in self._missing(1):
                name = kind.full_name(lang)
                self._ask(locate_phrases.locate(self.rng, lang, name), locate_phrases.absent(self.rng, lang, name), [])

    def caption(self) -> None:
        """Ask for a description, last, for it tells the counts."""
        lang = self.language
        counted = [kind for kind in self.composed.kinds() if self.composed.count(kind) <= 9]
        listed = join([amount(kind, self.composed.count(kind), lang) for kind in counted], lang)
        self._ask(self.rng.choice(DESCRIBE[lang]), self.rng.choice(CAPTION[lang]).format(things=listed), [])


@dataclass(frozen=True, kw_only=True)
class Places(Scenes):
    """Where one thing is among others like it."""

    name = "nano_places"
    category = "grounding"
    tasks_known: ClassVar[tuple[str, ...]] = ("place",)

    tasks: tuple[str, ...] = ("place",)
