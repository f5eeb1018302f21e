"""Draw the primer's small scenes, and ask several questions about each: what is there, how many, where."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vl2.synth.draft import Draft
from vl2.synth.scene import TASKS, Composed, absent_kind, ask_count, ask_place, ask_presence, compose
from vl2.synth.source import Source
from vl2.synth.sprites import Kind, built_in_kinds, read_kinds, read_sprite_set, things

OFTEN = ("ground", "count")  # tasks that are asked more often, because they are harder to learn
COUNTS_ABSENT = 0.3  # fraction of scenes with a question for the number of things that are absent


@dataclass(frozen=True, kw_only=True)
class PrimerScene(Source):
    """Scenes of one tile (every sixth of up to four) with up to `turns` questions, no question twice."""

    name = "primer_scene"
    category = "vqa"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "ground", "count", "presence", "side", "negative", "detect", "caption", "attribute",
    )  # fmt: skip

    art: str = ""  # folder of a sprite set; empty uses the built-in shapes
    languages: tuple[str, ...] = ("en", "zh")
    max_objects: int = 6
    max_of_kind: int = 4  # with 1, questions can be answered only by distinguishing the kinds
    turns: int = 4
    of_every_kind: bool = False  # ignore `turns` and `tasks`, and ask about every kind as `about_every_kind` does

    def kinds(self) -> tuple[Kind, ...]:
        return read_kinds(self.art) if self.art else built_in_kinds()

    def own_licence(self) -> str:
        return read_sprite_set(self.art).licence if self.art else super().own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language, pool = rng.choice(self.languages), things(self.kinds())
        composed = self.compose(rng)
        draft = Draft(language=language, traits={"objects": str(len(composed.placed))})
        draft.picture(composed.image)
        category, asked = None, set[str]()
        for turn in self._asked(composed, pool, language, rng):
            question = turn.messages[0].parts[-1].text
            if question not in asked:  # skip a question that was asked before
                asked.add(question or "")
                category = category or turn.category
                _append(draft, turn)
        draft.category = category
        return draft

    def _asked(self, composed: Composed, pool: Sequence[Kind], language: str, rng: random.Random) -> Iterator[Draft]:
        """Yield questions with their answers, each in a separate draft."""
        if self.of_every_kind:
            yield from about_every_kind(composed, pool, language, rng)
            return
        for _ in range(rng.randint(1, self.turns)):
            task = self.pick_task(rng) if rng.random() < 0.5 else rng.choice(self._often())
            turn = Draft(language=language)
            TASKS[task](turn, composed, pool, rng)
            yield turn

    def _often(self) -> tuple[str, ...]:
        wanted = self.tasks or self.tasks_known
        return tuple(task for task in OFTEN if task in wanted) or wanted

    def compose(self, rng: random.Random) -> Composed:
        """Draw a scene of one to four kinds of things."""
        pool = things(self.kinds())
        large = rng.random() < 1 / 6
        size = (rng.randrange(200, 337, 8), rng.randrange(120, 337, 8)) if large else (rng.randrange(120, 169, 8),) * 2
        if not large and rng.random() < 0.5:
            size = (size[0], rng.randrange(96, 169, 8))
        chosen = rng.sample(pool, min(len(pool), rng.randint(1, 4)))
        wanted = [kind for kind in chosen for _ in range(min(self.max_of_kind, rng.choice((1, 1, 1, 2, 3, 4))))]
        wanted = wanted[: self.max_objects]
        rng.shuffle(wanted)
        return compose(wanted, size, rng)


def about_every_kind(composed: Composed, pool: Sequence[Kind], language: str, rng: random.Random) -> Iterator[Draft]:
    """Yield questions about the presence, the number and the location of every kind, each in a separate draft.

    In this order no answer gives away a later one. The sequence begins at random with any of the three types, because a
    type of question that never comes first is not learned on its own.
    """
    present = composed.kinds()
    missing = [kind for _ in range(2) if (kind := absent_kind(composed, pool, language, rng)) is not None]
    begins_with = rng.choice(("presence", "count", "place"))
    if begins_with == "presence":
        for kind in rng.sample(present + missing, min(4, len(present + missing))):
            turn = Draft(language=language)
            ask_presence(turn, composed, kind.full_name(language), rng)
            yield turn
    if begins_with != "place":
        # Absent things are rarely counted: "0" is an easy answer, and a model would soon give it for everything.
        counted = present + missing[: rng.random() < COUNTS_ABSENT]
        for kind in rng.sample(counted, len(counted)):
            turn = Draft(language=language)
            ask_count(turn, composed, kind.full_name(language), kind.measure_zh, rng)
            yield turn
    for kind in rng.sample(present, len(present)):
        turn = Draft(language=language)
        ask_place(turn, composed, kind.full_name(language), rng)
        yield turn


def _append(draft: Draft, turn: Draft) -> None:
    """Add the only turn of another draft to `draft`. Its objects are appended, and their indices are shifted."""
    offset = len(draft.objects)
    draft.objects += turn.objects
    (question, answer) = (message.parts[-1].text or "" for message in turn.messages)
    for number in reversed(range(len(turn.objects))):
        question = question.replace(f"{{box:{number}}}", f"{{box:{number + offset}}}")
        answer = answer.replace(f"{{box:{number}}}", f"{{box:{number + offset}}}")
    evidence = [number + offset for number in turn.messages[1].evidence]
    draft.ask(question, answer, evidence)
