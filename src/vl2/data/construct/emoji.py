"""Pictures of single things (emoji, clip art) and their names: one large, or several in a row or a grid.

Every kind of the sprite set is used, faces, signs and flags too; scenes take things only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.data.construct.draft import Draft
from vl2.data.construct.nouns import article
from vl2.data.construct.restyle import restyle
from vl2.data.construct.scene import make_backdrop
from vl2.data.construct.scene_words import NAME_IT, named
from vl2.data.construct.source import Source
from vl2.data.construct.sprite_set import read_sprite_set
from vl2.data.construct.sprites import Kind, built_in_kinds, draw_sprite, is_noun, read_kinds
from vl2.process.tiling import Size

LIST_THEM = {
    "en": (
        "List the pictures from left to right.",
        "What do you see, in reading order?",
        "Name all pictures in order.",
    ),
    "zh": ("请从左到右说出这些图案。", "按顺序说出图中的所有图案。", "从左到右、从上到下，图中依次是什么？"),
}
NTH = {
    "en": ("What is picture number {n}?", "Counted in reading order, what does picture {n} show?"),
    "zh": ("第{n}个图案是什么？", "按顺序数，第{n}个是什么？"),
}
IS_IT = {
    "en": ("Is this {a_name}?", "Does the picture show {a_name}?"),
    "zh": ("这是{name}吗？", "图里画的是{name}吗？"),
}
CHOOSE = {
    "en": ("Which of these does the picture show: {names}?", "What is this? Choose from: {names}."),
    "zh": ("图中画的是哪一个：{names}？", "这是什么？请从中选择：{names}。"),
}
NUMBERS_ZH = "一二三四五六七八九"
MAX_COLUMNS = 4
CELL_PX = (72, 168)  # the side of a cell of several pictures


@dataclass(frozen=True, kw_only=True)
class Emoji(Source):
    """Naming pictures in English and Chinese."""

    name = "emoji"
    category = "caption"
    tasks_known: ClassVar[tuple[str, ...]] = ("name", "name_each", "list", "nth", "is_it", "choose")

    art: str = ""  # the folder of a sprite set; "": the built-in shapes
    languages: tuple[str, ...] = ("en", "zh")
    min_side_px: int = 96  # of the picture of one thing
    max_side_px: int = 400
    max_pictures: int = 8
    restyled_share: float = 0.0  # of the pictures of one thing: drawn as another hand would

    def kinds(self) -> tuple[Kind, ...]:
        return read_kinds(self.art) if self.art else built_in_kinds()

    def own_licence(self) -> str:
        return read_sprite_set(self.art).licence if self.art else super().own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language, task = rng.choice(self.languages), self.pick_task(rng)
        draft = Draft(language=language, traits={"task": task, "art": "file" if self.art else "shape"})
        pool = self.kinds()
        if task in ("list", "nth"):
            shown = rng.sample(pool, min(len(pool), rng.randint(2, self.max_pictures)))
            draft.picture(draw_grid(shown, rng))
        else:
            shown = [rng.choice(pool)]
            if not is_noun(shown[0]) and task not in ("name", "name_each"):
                task = "choose"
            side = rng.randint(self.min_side_px, self.max_side_px)
            draft.picture(draw_alone(shown[0], (side, side), rng, self.restyled_share))
        _TASKS[task](draft, shown, pool, rng)
        return draft


def draw_alone(kind: Kind, size: Size, rng: random.Random, restyled_share: float = 0.0) -> Image.Image:
    """Draw one thing large, somewhere on a pale ground."""
    image = make_backdrop(size, rng)
    sprite = draw_sprite(kind, max(8, round(min(size) * rng.uniform(0.6, 0.95) / 8) * 8))
    if restyled_share and rng.random() < restyled_share:
        sprite = restyle(sprite, rng)
    x, y = rng.randint(0, size[0] - sprite.width), rng.randint(0, size[1] - sprite.height)
    image.paste(sprite, (x, y), sprite)
    return image


def draw_grid(kinds: Sequence[Kind], rng: random.Random) -> Image.Image:
    """Draw things in rows of equal cells, in reading order."""
    columns = min(len(kinds), rng.randint(2, MAX_COLUMNS))
    rows = -(-len(kinds) // columns)
    cell = rng.randrange(CELL_PX[0], CELL_PX[1], 8)
    image = make_backdrop((columns * cell, rows * cell), rng)
    for number, kind in enumerate(kinds):
        sprite = draw_sprite(kind, cell - 16)
        left, top = number % columns * cell, number // columns * cell
        image.paste(sprite, (left + (cell - sprite.width) // 2, top + (cell - sprite.height) // 2), sprite)
    return image


Task = Callable[[Draft, Sequence[Kind], Sequence[Kind], random.Random], None]


def _name(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    _ask_name(draft, shown[0], draft.language, rng)


def _name_each(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    """Ask for the name in the draft's language and then in the other: two answers for one picture."""
    for language in (draft.language, "zh" if draft.language == "en" else "en"):
        _ask_name(draft, shown[0], language, rng)


def _ask_name(draft: Draft, kind: Kind, language: str, rng: random.Random) -> None:
    question, *answers = rng.choice(NAME_IT[language] if is_noun(kind) else NAME_IT[language][2:3])
    draft.ask(question, named(rng.choice(answers), kind.full_name(language)))


def _list(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    zh = draft.language == "zh"
    names = [kind.full_name(draft.language) for kind in shown]
    draft.ask(rng.choice(LIST_THEM[draft.language]), "、".join(names) + "。" if zh else ", ".join(names) + ".")


def _nth(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category, zh = "vqa", draft.language == "zh"
    at = rng.randrange(len(shown))
    question = rng.choice(NTH[draft.language]).format(n=NUMBERS_ZH[at] if zh else at + 1)
    draft.ask(question, shown[at].full_name(draft.language))


def _is_it(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category, zh = "vqa", draft.language == "zh"
    name = shown[0].full_name(draft.language)
    is_true = rng.random() < 0.5
    asked = name if is_true else _other(name, [kind for kind in pool if is_noun(kind)], draft.language, rng)
    question = rng.choice(IS_IT[draft.language]).format(name=asked, a_name=article(asked))
    if is_true:
        draft.ask(question, "是的。" if zh else "Yes.")
    else:
        draft.ask(question, f"不是，这是{name}。" if zh else f"No, {named('it is {a_name}.', name)}")


def _choose(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category, zh = "vqa", draft.language == "zh"
    name = shown[0].full_name(draft.language)
    names = list(dict.fromkeys([name, *(_other(name, pool, draft.language, rng) for _ in range(3))]))
    rng.shuffle(names)
    listed = ("、" if zh else ", ").join(names)
    draft.ask(rng.choice(CHOOSE[draft.language]).format(names=listed), name)


def _other(name: str, pool: Sequence[Kind], language: str, rng: random.Random) -> str:
    """Return another name; several kinds may share one in Chinese."""
    others = {kind.full_name(language) for kind in rng.sample(pool, min(len(pool), 24))} - {name}
    return rng.choice(sorted(others))


_TASKS: dict[str, Task] = {
    "name": _name,
    "name_each": _name_each,
    "list": _list,
    "nth": _nth,
    "is_it": _is_it,
    "choose": _choose,
}
