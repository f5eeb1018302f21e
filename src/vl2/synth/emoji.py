"""Draw single things (emoji, clip art), one large or several in a grid, and ask for their names.

All kinds of the sprite set are used, including faces, signs and flags; scenes use only things. In the tasks
"name_shown" and "list_shown" the evidence of the answer is the middle of each thing, because the visual token there
represents the thing in an encoder that has been warmed up. The answers of these tasks are bare names, in English one
per line: after a space a name consists of different tokens, which would have to be learned separately.

A record uses one language only. A second answer about the same things in the other language could be derived from the
first, without looking at the image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.process.tiling import Size
from vl2.synth.draft import Draft
from vl2.synth.nouns import article
from vl2.synth.restyle import restyle
from vl2.synth.scene import make_backdrop
from vl2.synth.scene_words import NAME_IT, named
from vl2.synth.source import Source
from vl2.synth.sprites import Kind, built_in_kinds, draw_sprite, is_noun, read_kinds, read_sprite_set

LIST_THEM = {
    "en": (
        "List the pictures from left to right, one per line.",
        "What do you see, in reading order? Write one name per line.",
        "Name all pictures in order, one per line.",
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
CELL_PX = (72, 168)  # range of the side of a cell in a grid
SHEET_PX, SHEET_CELL_PX = 336, (64, 112)  # greatest width of a sheet, and range of the side of its cells
MIDDLE = 1 / 3  # sides of the middle of a thing, as a fraction of those of its box


@dataclass(frozen=True, kw_only=True)
class Emoji(Source):
    """Naming pictures in English and Chinese."""

    name = "emoji"
    category = "caption"
    tasks_known: ClassVar[tuple[str, ...]] = ("name", "name_shown", "list", "list_shown", "nth", "is_it", "choose")

    art: str = ""  # folder of a sprite set; empty uses the built-in shapes
    languages: tuple[str, ...] = ("en", "zh")
    min_side_px: int = 96  # range of the side of an image with one thing
    max_side_px: int = 400
    max_pictures: int = 8  # greatest number of things in "list" and "nth"; "list_shown" fills a sheet
    restyled_share: float = 0.0  # fraction of things, alone or on a sheet, that are drawn in another style

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side_px < self.min_side_px:
            raise UserError(f"max_side_px must be at least min_side_px, {self.min_side_px}, got {self.max_side_px}")

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
        elif task == "list_shown":
            image, laid = draw_sheet(pool, rng, self.restyled_share)
            draft.picture(image)
            _ask_list(draft, [thing.kind for thing in laid], rng, [thing.show_middle(draft) for thing in laid])
            return draft
        else:
            shown = [rng.choice(pool)]
            if not is_noun(shown[0]) and task not in ("name", "name_shown"):
                task = "choose"
            side = rng.randint(self.min_side_px, self.max_side_px)
            image, box = lay_alone(shown[0], (side, side), rng, self.restyled_share)
            draft.picture(image)
            if task == "name_shown":
                _ask_name(draft, shown, rng, [Laid(shown[0], box).show_middle(draft)])
                return draft
        _TASKS[task](draft, shown, pool, rng)
        return draft


@dataclass(frozen=True)
class Laid:
    """A thing with its box in an image."""

    kind: Kind
    box_px: BoxPx

    def show_middle(self, draft: Draft) -> int:
        """Add the middle of the thing as an object, with one box per character of its name; return the index."""
        x0, y0, x1, y1 = self.box_px
        x, y = (x1 - x0) * (1 - MIDDLE) / 2, (y1 - y0) * (1 - MIDDLE) / 2
        name = self.kind.full_name(draft.language)
        middle = (round(x0 + x), round(y0 + y), max(round(x1 - x), 1), max(round(y1 - y), 1))
        return draft.show(name, [middle] * len(name))


def draw_alone(kind: Kind, size: Size, rng: random.Random, restyled_share: float = 0.0) -> Image.Image:
    """Return an image of one large thing at a random position on a pale background."""
    return lay_alone(kind, size, rng, restyled_share)[0]


def lay_alone(kind: Kind, size: Size, rng: random.Random, restyled_share: float = 0.0) -> tuple[Image.Image, BoxPx]:
    """Return an image of one large thing at a random position on a pale background, and the box of the thing."""
    image = make_backdrop(size, rng)
    side = max(8, round(min(size) * rng.uniform(0.6, 0.95) / 8) * 8)
    return image, _lay(image, kind, side, (0, 0, *size), rng, restyled_share)


def draw_sheet(pool: Sequence[Kind], rng: random.Random, restyled_share: float = 0.0) -> tuple[Image.Image, list[Laid]]:
    """Draw things in rows of equal cells, each at a random position in its cell.

    Return the image, and the things in reading order. `restyled_share` is the fraction of things to restyle.
    """
    cell = rng.randint(*SHEET_CELL_PX)
    columns = SHEET_PX // cell
    kinds = rng.sample(pool, min(len(pool), columns * rng.randint(1, columns)))
    size, corners = _cells(len(kinds), columns, cell)
    image = make_backdrop(size, rng)
    laid = list[Laid]()
    for kind, (left, top) in zip(kinds, corners, strict=True):
        side = round(cell * rng.uniform(0.65, 0.95)) // 8 * 8
        box = _lay(image, kind, side, (left, top, left + cell, top + cell), rng, restyled_share)
        laid.append(Laid(kind, box))
    return image, laid


def _lay(
    image: Image.Image,
    kind: Kind,
    side: int,
    within_px: tuple[int, int, int, int],
    rng: random.Random,
    restyled_share: float,
) -> BoxPx:
    """Paste a thing of at most `side` pixels at a random position in the box `within_px`, and return its own box."""
    sprite = draw_sprite(kind, side)
    if restyled_share and rng.random() < restyled_share:
        sprite = restyle(sprite, rng)
    x0, y0, x1, y1 = within_px
    x, y = rng.randint(x0, x1 - sprite.width), rng.randint(y0, y1 - sprite.height)
    image.paste(sprite, (x, y), sprite)
    return (x, y, x + sprite.width, y + sprite.height)


def draw_grid(kinds: Sequence[Kind], rng: random.Random) -> Image.Image:
    """Return an image of things in rows of equal cells, in reading order, each in the center of its cell."""
    columns, cell = rng.randint(2, MAX_COLUMNS), rng.randrange(CELL_PX[0], CELL_PX[1], 8)
    size, corners = _cells(len(kinds), columns, cell)
    image = make_backdrop(size, rng)
    for kind, (left, top) in zip(kinds, corners, strict=True):
        sprite = draw_sprite(kind, cell - 16)
        image.paste(sprite, (left + (cell - sprite.width) // 2, top + (cell - sprite.height) // 2), sprite)
    return image


def _cells(count: int, most_columns: int, cell_px: int) -> tuple[Size, list[tuple[int, int]]]:
    """Return the size of an image with `count` equal cells, and the cells' upper left corners in reading order."""
    columns = min(count, most_columns)
    corners = [(number % columns * cell_px, number // columns * cell_px) for number in range(count)]
    return (columns * cell_px, -(-count // columns) * cell_px), corners


Task = Callable[[Draft, Sequence[Kind], Sequence[Kind], random.Random], None]


def _ask_name(draft: Draft, shown: Sequence[Kind], rng: random.Random, evidence: Sequence[int] = ()) -> None:
    kind, questions = shown[0], NAME_IT[draft.language]
    is_bare = bool(evidence) or not is_noun(kind)
    question, *answers = rng.choice(questions[2:3] if is_bare else questions)
    draft.ask(question, named(rng.choice(answers), kind.full_name(draft.language)), evidence)


def _ask_list(draft: Draft, shown: Sequence[Kind], rng: random.Random, evidence: Sequence[int] = ()) -> None:
    names = [kind.full_name(draft.language) for kind in shown]
    answer = "、".join(names) + "。" if draft.language == "zh" else "\n".join(names)
    draft.ask(rng.choice(LIST_THEM[draft.language]), answer, evidence)


def _name(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    _ask_name(draft, shown, rng)


def _list(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    _ask_list(draft, shown, rng)


def _nth(draft: Draft, shown: Sequence[Kind], pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category, zh = "vqa", draft.language == "zh"
    at = rng.randrange(len(shown))
    number = NUMBERS_ZH[at] if zh and at < len(NUMBERS_ZH) else at + 1
    question = rng.choice(NTH[draft.language]).format(n=number)
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
    """Return the name of a random kind that differs from `name`. In Chinese several kinds may have the same name."""
    others = {kind.full_name(language) for kind in rng.sample(pool, min(len(pool), 24))} - {name}
    return rng.choice(sorted(others))


_TASKS: dict[str, Task] = {
    "name": _name,
    "list": _list,
    "nth": _nth,
    "is_it": _is_it,
    "choose": _choose,
}
