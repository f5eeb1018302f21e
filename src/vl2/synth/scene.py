"""Draw scenes of sprites that do not overlap, and ask questions whose boxes, counts and relations are known exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.process.tiling import Size
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.scene_words import (
    CAPTION,
    COLOR_OF,
    COUNT,
    DESCRIBE,
    DETECT,
    GROUNDED,
    NAME_IT,
    OF_COLOR,
    PRESENCE,
    SIDES,
    WHERE,
    amount,
    join,
    named,
)  # fmt: skip
from vl2.synth.source import Source
from vl2.synth.sprites import Kind, built_in_kinds, draw_sprite, read_kinds, read_sprite_set, things

GAP_PX = 3  # least distance between the boxes of two sprites
ATTEMPTS = 60  # random positions tried for a sprite before it is left out
BACKDROPS = ("plain", "gradient", "noise", "ground")


@dataclass(frozen=True, kw_only=True)
class Placed:
    kind: Kind
    box: BoxPx


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A scene: its image, the background without sprites, and the sprites with their boxes."""

    image: Image.Image
    backdrop: Image.Image
    placed: tuple[Placed, ...]

    def boxes(self, language: str, label: str) -> list[BoxPx]:
        """Return the sorted boxes of all things with this name, which may include the color; leftmost first."""
        found = [p.box for p in self.placed if label in (p.kind.name(language), p.kind.full_name(language))]
        return sorted(found)

    def kinds(self) -> list[Kind]:
        """Return the different kinds in the scene, the most frequent first."""
        seen = [p.kind for p in self.placed]
        return sorted(set(seen), key=lambda kind: (-seen.count(kind), kind.full_name("en")))

    def count(self, kind: Kind) -> int:
        return sum(p.kind == kind for p in self.placed)


def make_backdrop(size: Size, rng: random.Random) -> Image.Image:
    """Draw a pale background on which every color of the shapes is visible."""
    base = np.array([rng.randint(222, 255) for _ in range(3)], dtype=np.float32)
    width, height = size
    style, level = rng.choice(BACKDROPS), np.zeros((height, width), dtype=np.float32)
    if style == "gradient":
        level += np.linspace(-20, 12, height)[:, None] + np.linspace(0, rng.uniform(-14, 14), width)[None, :]
    elif style == "noise":
        level += np.random.default_rng(rng.getrandbits(32)).normal(0, 4, (height, width))
    elif style == "ground":
        level[round(height * rng.uniform(0.5, 0.75)) :] -= 22
    return Image.fromarray((base + level[:, :, None]).clip(0, 255).astype(np.uint8))


def compose(kinds: Sequence[Kind], size: Size, rng: random.Random) -> Composed:
    """Place one sprite per entry of `kinds` at a random position. A sprite that finds no free position is left out."""
    backdrop = make_backdrop(size, rng)
    image, placed = backdrop.copy(), list[Placed]()
    short = min(size)
    low, high = (0.12, 0.26) if len(kinds) > 6 else (0.16, 0.36)
    for kind in kinds:
        sprite = draw_sprite(kind, round(short * rng.uniform(low, high) / 8) * 8)
        box = _free_place(sprite.size, size, [p.box for p in placed], rng)
        if box is not None:
            image.paste(sprite, (int(box[0]), int(box[1])), sprite)
            placed.append(Placed(kind=kind, box=box))
    return Composed(image=image, backdrop=backdrop, placed=tuple(placed))


def _free_place(sprite: Size, size: Size, taken: list[BoxPx], rng: random.Random) -> BoxPx | None:
    for _ in range(ATTEMPTS):
        x, y = rng.randint(0, size[0] - sprite[0]), rng.randint(0, size[1] - sprite[1])
        box = (x, y, x + sprite[0], y + sprite[1])
        if all(
            box[2] + GAP_PX <= b[0] or b[2] + GAP_PX <= box[0] or box[3] + GAP_PX <= b[1] or b[3] + GAP_PX <= box[1]
            for b in taken
        ):
            return box
    return None


@dataclass(frozen=True, kw_only=True)
class Scene(Source):
    """Scenes of built-in shapes, or of sprites (emoji, clip art) with their names."""

    name = "scene"
    category = "caption"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "name", "caption", "count", "presence", "side", "ground", "negative", "detect", "grounded_caption",
    )  # fmt: skip

    art: str = ""  # folder of a sprite set; empty uses the built-in shapes
    languages: tuple[str, ...] = ("en", "zh")
    max_objects: int = 9

    def kinds(self) -> tuple[Kind, ...]:
        return read_kinds(self.art) if self.art else built_in_kinds()

    def own_licence(self) -> str:
        return read_sprite_set(self.art).licence if self.art else super().own_licence()

    def compose(self, rng: random.Random, *, alone: bool = False) -> Composed:
        """Make a scene of two to four kinds of things; with `alone`, a portrait of a single thing."""
        size = (rng.randrange(224, 640, 8), rng.randrange(224, 480, 8))
        if alone:
            return self.portrait(rng)
        pool = things(self.kinds())
        chosen = rng.sample(pool, min(len(pool), rng.randint(2, 4)))
        wanted = [kind for kind in chosen for _ in range(rng.choice((1, 1, 2, 3, 4)))][: self.max_objects]
        rng.shuffle(wanted)
        return compose(wanted, size, rng)

    def portrait(self, rng: random.Random, kind: Kind | None = None) -> Composed:
        """Make a picture of one large thing, of a random kind if `kind` is None."""
        side = rng.randrange(160, 400, 8)
        backdrop = make_backdrop((side, side), rng)
        kind = kind or rng.choice(self.kinds())
        sprite = draw_sprite(kind, round(side * rng.uniform(0.55, 0.9) / 8) * 8)
        x, y = rng.randint(0, side - sprite.width), rng.randint(0, side - sprite.height)
        image = backdrop.copy()
        image.paste(sprite, (x, y), sprite)
        placed = Placed(kind=kind, box=(x, y, x + sprite.width, y + sprite.height))
        return Composed(image=image, backdrop=backdrop, placed=(placed,))

    def draft(self, rng: random.Random) -> Draft:
        language, task = rng.choice(self.languages), self.pick_task(rng)
        composed = self.compose(rng, alone=task == "name")
        draft = Draft(language=language, traits={"task": task, "art": "file" if self.art else "shape"})
        draft.picture(composed.image)
        TASKS[task](draft, composed, things(self.kinds()), rng)
        return draft


Task = Callable[[Draft, Composed, Sequence[Kind], random.Random], None]


def _any_label(composed: Composed, language: str, rng: random.Random) -> str:
    """Return the name of a random kind in the scene, with or without its color."""
    kind = rng.choice(composed.kinds())
    return rng.choice((kind.name(language), kind.full_name(language)))


def absent_kind(composed: Composed, pool: Sequence[Kind], language: str, rng: random.Random) -> Kind | None:
    """Return a kind that is not in the scene, or None if the scene has all of them.

    If possible, half of the time it is a hard negative, which differs from a thing in the scene only by its color.
    """
    missing = [kind for kind in pool if not composed.boxes(language, kind.full_name(language))]
    near = [kind for kind in missing if composed.boxes(language, kind.name(language))]
    if near and rng.random() < 0.5:
        return rng.choice(near)
    return rng.choice(missing) if missing else None


def _name(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    name = composed.placed[0].kind.full_name(draft.language)
    question, *answers = rng.choice(NAME_IT[draft.language])
    draft.ask(question, named(rng.choice(answers), name))


def _caption(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    draft.ask(rng.choice(DESCRIBE[draft.language]), caption(composed, draft.language, rng))


def caption(composed: Composed, language: str, rng: random.Random) -> str:
    """Return a caption: the kinds in the scene with their counts and, if possible, how two single things are placed."""
    listed = join([amount(kind, composed.count(kind), language) for kind in composed.kinds()], language)
    text = rng.choice(CAPTION[language]).format(things=listed)
    pair = _pair(composed, rng)
    if pair is None:
        return text
    first, second, side = pair
    sentence = SIDES[language]["caption"].format(
        first=first.full_name(language), second=second.full_name(language), side=SIDES[language][side]
    )
    return f"{text}{'' if language == 'zh' else ' '}{sentence}"


def _pair(composed: Composed, rng: random.Random) -> tuple[Kind, Kind, str] | None:
    """Return two kinds that occur once each, and the side of the second on which the first is ("left", "above", ...).

    Return None if there are no two such kinds, or if their boxes overlap in both directions.
    """
    single = [p for p in composed.placed if composed.count(p.kind) == 1]
    if len(single) < 2:
        return None
    first, second = rng.sample(single, 2)
    a, b = first.box, second.box
    apart = {"left": b[0] - a[2], "right": a[0] - b[2], "above": b[1] - a[3], "below": a[1] - b[3]}
    side = max(apart, key=lambda key: apart[key])
    return (first.kind, second.kind, side) if apart[side] > 0 else None


def _count(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    label = _any_label(composed, draft.language, rng)
    kind = next(k for k in composed.kinds() if label in (k.name(draft.language), k.full_name(draft.language)))
    if rng.random() < 0.1:
        kind = absent_kind(composed, pool, draft.language, rng) or kind
        label = kind.full_name(draft.language)
    ask_count(draft, composed, label, kind.measure_zh, rng)


def ask_count(draft: Draft, composed: Composed, label: str, measure_zh: str, rng: random.Random) -> None:
    """Add a question about the number of things with a name."""
    lang = draft.language
    draft.category = "vqa"
    noun = label if lang == "zh" else plural(label)
    question = rng.choice(COUNT[lang]).format(noun=noun, measure=measure_zh)
    draft.ask(question, str(len(composed.boxes(lang, label))), _shown(draft, composed, label, said=noun))


def _presence(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    missing = absent_kind(composed, pool, draft.language, rng) if rng.random() < 0.5 else None
    label = missing.full_name(draft.language) if missing else _any_label(composed, draft.language, rng)
    ask_presence(draft, composed, label, rng)


def ask_presence(draft: Draft, composed: Composed, label: str, rng: random.Random) -> None:
    """Add a yes-or-no question about the presence of things with a name."""
    lang = draft.language
    draft.category = "vqa"
    is_there = bool(composed.boxes(lang, label))
    answer = ("有。" if is_there else "没有。") if lang == "zh" else ("Yes." if is_there else "No.")
    question = rng.choice(PRESENCE[lang]).format(name=label, a_name=article(label))
    draft.ask(question, answer, _shown(draft, composed, label))


def _shown(draft: Draft, composed: Composed, label: str, said: str = "") -> list[int]:
    """Add the things with a name as an object, and return its index as evidence. There may be no such things.

    `said` is the name as the question spells it; if it is empty, it is `label`.
    """
    return [draft.show(said or label, composed.boxes(draft.language, label))]


def _attribute(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    """Ask for the color of a kind by its name, or for its name by its color, if only one kind in the scene fits.

    If no kind fits, ask for a count instead.
    """
    lang, kinds = draft.language, composed.kinds()
    of_name = [kind for kind in kinds if kind.color and sum(kind.en == other.en for other in kinds) == 1]
    of_color = [kind for kind in kinds if kind.color and sum(kind.color == other.color for other in kinds) == 1]
    asks_color = rng.random() < 0.5 if of_name and of_color else bool(of_name)
    if not (of_name or of_color):
        return _count(draft, composed, pool, rng)
    draft.category = "vqa"
    kind = rng.choice(of_name if asks_color else of_color)
    question = rng.choice((COLOR_OF if asks_color else OF_COLOR)[lang])
    color = kind.color_name(lang)
    answer = color if asks_color else kind.name(lang)
    said = kind.name(lang) if asks_color else color
    evidence = _shown(draft, composed, kind.full_name(lang), said=said)
    return draft.ask(question.format(name=kind.name(lang), color=color), answer, evidence)


def _side(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    lang, pair = draft.language, _pair(composed, rng)
    if pair is None:
        return _count(draft, composed, pool, rng)
    draft.category = "vqa"
    first, second, side = pair
    question = WHERE[lang].format(first=first.full_name(lang), second=second.full_name(lang))
    return draft.ask(question, SIDES[lang][f"{side}_answer"])


def _ground(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    ask_place(draft, composed, _any_label(composed, draft.language, rng), rng)


def ask_place(draft: Draft, composed: Composed, label: str, rng: random.Random) -> None:
    """Add a question about the location of all things with a name, with their boxes as the answer."""
    draft.category = "grounding"
    boxes = draft.box(label, composed.boxes(draft.language, label))
    draft.ask(locate_phrases.locate(rng, draft.language, label), boxes)


def _negative(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category = "grounding"
    lang = draft.language
    missing = absent_kind(composed, pool, lang, rng)
    if missing is None:
        return _ground(draft, composed, pool, rng)
    label = missing.full_name(lang)
    return draft.ask(locate_phrases.locate(rng, lang, label), locate_phrases.absent(rng, lang, label))


def _detect(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    draft.category = "grounding"
    names = [kind.full_name(draft.language) for kind in composed.kinds()]
    places = [draft.box(name, composed.boxes(draft.language, name)) for name in names]
    draft.ask(rng.choice(DETECT[draft.language]), "\n".join(places))


def _grounded_caption(draft: Draft, composed: Composed, pool: Sequence[Kind], rng: random.Random) -> None:
    """Ask for a caption with a box for every thing, and in 40 % of cases add a question about a count."""
    lang = draft.language
    draft.category = "grounded_conversation"
    listed = []
    for kind in composed.kinds():
        count, name = composed.count(kind), kind.full_name(lang)
        label = plural(name) if lang == "en" and count > 1 else name
        tag = draft.box(label, composed.boxes(lang, name))
        listed.append(amount(kind, count, lang).removesuffix(label) + tag)
    text = rng.choice(CAPTION[lang]).format(things=join(listed, lang))
    draft.ask("<|grounding|>" + rng.choice(GROUNDED[lang]), text)
    if rng.random() < 0.4:
        category = draft.category
        _count(draft, composed, pool, rng)
        draft.category = category


TASKS: dict[str, Task] = {
    "name": _name, "caption": _caption, "count": _count, "presence": _presence, "side": _side, "ground": _ground,
    "attribute": _attribute, "negative": _negative, "detect": _detect, "grounded_caption": _grounded_caption,
}  # fmt: skip
